-- The last tokens and the end of a job.
--
-- keys    job, tokens, result, its lane
-- args    group, consumer, epoch, entry, start, count, blob of the last tokens, ended event, result, reason
-- answer  {'ok' | 'already' | 'fenced' | 'gap', tokens in the stream now}
-- effects 1. the last tokens, if any, and the end event  2. the result  3. the hash: ended, and everything's time to live
--         4. the lane's entry is acknowledged and deleted
local group, consumer, epoch, entry, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[10]
local start, count = tonumber(ARGV[5]), tonumber(ARGV[6])
local owner = epoch .. ' ' .. consumer
local _, offset = tail(KEYS[2])
if not owns(KEYS[1], epoch, consumer) then
  return {redis.call('HGET', KEYS[1], 'ended_by') == owner and 'already' or 'fenced', whole(offset)}
end
if offset ~= start and offset ~= start + count then return {'gap', whole(offset)} end

local after = start + count
if offset ~= after and not append(KEYS[2], epoch, after, 't', ARGV[7]) then return {'fenced', whole(offset)} end
local ended = tonumber(epoch) + 1
if not append(KEYS[2], ended, after, 'e', ARGV[8]) then return {'fenced', whole(offset)} end
local ttl = conclude(KEYS[1], KEYS[2], reason, ended, after)
redis.call('HSET', KEYS[1], 'ended_by', owner)
redis.call('SET', KEYS[3], ARGV[9], 'PX', whole(ttl))
redis.call('XACK', KEYS[4], group, entry)
redis.call('XDEL', KEYS[4], entry)
return {'ok', whole(after)}
