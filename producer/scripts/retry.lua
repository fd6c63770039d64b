-- Give a job up because the machine failed it: it comes again, later if it may have been the job's fault.
--
-- keys    about the job
-- args    group, id, tenant, consumer, epoch, entry, lane's name, what failed, ms to wait at the first strike, a random
--         number of 0 to 1, the consumer to hand to
-- answer  {'delayed', strikes}: backs off | {'queued', strikes}: not to blame, anyone may take it at once
--         {'fenced', 0}: it was not the caller's to give
-- effects 1. history, strikes  2. nobody's under a new epoch  3. delayed: the entry goes, to come back once due, twice as late
--         with each strike; queued: the entry becomes pending at the handed-to consumer
local group, id, tenant, consumer, epoch, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local lane = LANE[ARGV[7]]
local after = redis.call('HMGET', JOB, 'given_up_by', 'strikes', 'state')
local owner = epoch .. ' ' .. consumer
if after[1] == owner then return {after[3], whole(tonumber(after[2]) or 0)} end
if not owns(JOB, epoch, consumer) then return {'fenced', '0'} end

local _, offset = tail(TOKENS)
local blamed = is_to_blame(JOB, offset)
local strikes = (tonumber(after[2]) or 0) + (blamed and 1 or 0)
note(JOB, offset or 0, (blamed and 'strike: ' or '') .. owner .. ' gave it up: ' .. ARGV[8])
redis.call('HSET', JOB, 'epoch', whole(tonumber(epoch) + 1), 'owner', '', 'strikes', strikes, 'given_up_by', owner)
if not blamed then
  redis.call('HSET', JOB, 'state', 'queued')
  if pending_at(lane, group, entry) == consumer then redis.call('XCLAIM', lane, group, ARGV[11], 0, entry, 'JUSTID') end
  return {'queued', whole(strikes)}
end
local wait = math.min(60000, tonumber(ARGV[9]) * 2 ^ (strikes - 1)) * (0.5 + tonumber(ARGV[10]))
local due = whole(now_ms() + wait)
redis.call('HSET', JOB, 'state', 'delayed', 'entry', '', 'due', due)
redis.call('ZADD', DELAYED, due, id)
redis.call('XACK', lane, group, entry)
redis.call('XDEL', lane, entry)
step_out(id, tenant, nil)
return {'delayed', whole(strikes)}
