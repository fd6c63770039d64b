-- The last tokens and the end of a job.
--
-- keys    about the job
-- args    group, id, tenant, consumer, epoch, entry, lane's name, start, count, blob of the last tokens, ended event, result,
--         reason, and where that is `dead` why, in a word
-- answer  {'ok' | 'already' | 'fenced' | 'gap' | 'broken', tokens in the stream now}
-- effects 1. the last tokens, if any, and the end event  2. the result  3. a dead letter, if it is one  4. the hash: ended,
--         and everything's time to live  5. the lane's entry is acknowledged and deleted
local group, id, tenant, consumer, epoch, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local start, count_new, reason = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[13]
local owner = epoch .. ' ' .. consumer
local newest, offset = tail(TOKENS)
if not owns(JOB, epoch, consumer) then
  return {redis.pcall('HGET', JOB, 'ended_by') == owner and 'already' or 'fenced', whole(offset or 0)}
end
if not newest then return {'broken', '0'} end
if offset ~= start and offset ~= start + count_new then return {'gap', whole(offset)} end

local after = start + count_new
if offset ~= after and not append(TOKENS, epoch, after, 't', ARGV[10]) then return {'fenced', whole(offset)} end
local ended = tonumber(epoch) + 1
if not append(TOKENS, ended, after, 'e', ARGV[11]) then return {'fenced', whole(offset)} end
if reason == 'dead' then bury(id, ARGV[14], unpack(redis.call('HMGET', JOB, 'payload', 'history'))) end
local ttl = conclude(id, tenant, reason, ended, after)
redis.call('HSET', JOB, 'ended_by', owner)
redis.call('SET', RESULT, ARGV[12], 'PX', whole(ttl))
redis.call('XACK', LANE[ARGV[7]], group, entry)
redis.call('XDEL', LANE[ARGV[7]], entry)
return {'ok', whole(after)}
