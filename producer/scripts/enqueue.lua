-- Put a job on its lane.
--
-- keys    job, its lane, the three lanes, control
-- args    id, lane's name, payload, digest of the payload, result_ttl (ms), jobs the queue may hold by default
-- answer  {'ok'} | {'known'}: was accepted before | {'conflict'}: the id is another job's | {'full', depth, limit}
-- effects 1. the lane's entry  2. the job's hash
local known = redis.call('HMGET', KEYS[1], 'state', 'digest')
if known[1] or known[2] then
  return {known[2] == ARGV[4] and 'known' or 'conflict'}
end
local depth = 0
for i = 3, 5 do depth = depth + redis.call('XLEN', KEYS[i]) end
local limit = tonumber(redis.call('HGET', KEYS[6], 'max_depth') or ARGV[6])
if depth >= limit then return {'full', whole(depth), whole(limit)} end

local entry = redis.call('XADD', KEYS[2], '*', 'j', ARGV[1])
redis.call('HSET', KEYS[1], 'state', 'queued', 'lane', ARGV[2], 'entry', entry, 'payload', ARGV[3], 'digest', ARGV[4],
  'epoch', '0', 'owner', '', 'deliveries', '0', 'result_ttl', ARGV[5], 'queued_at', whole(now_ms()))
return {'ok'}
