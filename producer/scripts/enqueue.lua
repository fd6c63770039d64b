-- Accept a job: onto its lane, into its tenant's line, or among the delayed.
--
-- keys    about the job
-- args    id, tenant, lane, payload, digest of the payload, result_ttl (ms), how long the ended job is remembered (ms),
--         not before (Unix ms, 0: now), deadline (Unix ms, 0: none), then what holds where `control` says nothing:
--         max_depth (jobs), max_bytes (of payloads), max_age (ms)
-- answer  {'ok'} | {'known'}: was accepted before | {'conflict'}: the id is another job's
--         {'late', now}: the deadline has passed
--         {'full', what, figure, its limit, ms to wait}; what: depth | bytes | memory (% of maxmemory) | tenant
-- effects 1. the lane's entry, or the line's, or the delayed one  2. the job's hash  3. its deadline  4. counts
local id, tenant, lane, payload = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known = redis.call('HMGET', JOB, 'state', 'digest')
if known[1] or known[2] then
  return {known[2] == ARGV[5] and 'known' or 'conflict'}
end
local now = now_ms()
local due, deadline = tonumber(ARGV[8]), tonumber(ARGV[9])
local set = redis.call('HMGET', CONTROL, 'max_depth', 'max_bytes', 'max_age', tenant .. ':queued', 'tenant_queued')
local counted = redis.call('HMGET', COUNTS, '/bytes', '/memory_at', '/memory')
local latest = math.max(now, due) + tonumber(set[3] or ARGV[12])
if deadline == 0 or deadline > latest then deadline = latest end
if deadline <= now then return {'late', whole(now)} end

-- What Redis has left, looked at once a second: past 80 % of maxmemory nothing new comes in, so that what runs can end.
local function memory_share()
  if (tonumber(counted[2]) or 0) + 1000 > now then return tonumber(counted[3]) end
  local info = redis.pcall('INFO', 'memory')
  info = type(info) == 'string' and info or ''
  local used, most = string.match(info, 'used_memory:(%d+)'), tonumber(string.match(info, 'maxmemory:(%d+)')) or 0
  local share = most > 0 and math.floor(100 * tonumber(used) / most) or 0
  redis.call('HSET', COUNTS, '/memory_at', whole(now), '/memory', share)
  return share
end

-- When a hundredth of the limit will have drained, by how many ended since somebody last met a full queue.
local function full(what, figure, most)
  local ended = tonumber(redis.call('HGET', COUNTS, '/ended')) or 0
  local met = redis.call('HMGET', COUNTS, '/met_at', '/met_ended', '/rate')
  local rate = tonumber(met[3])
  if not met[1] or now - tonumber(met[1]) > 1000 then
    rate = met[1] and now > tonumber(met[1]) and (ended - tonumber(met[2])) / (now - tonumber(met[1])) or rate
    redis.call('HSET', COUNTS, '/met_at', whole(now), '/met_ended', whole(ended), '/rate', tostring(rate or 0))
    if redis.call('EXISTS', DEADLINES) == 0 then redis.call('EXPIRE', COUNTS, 3600) end
  end
  local wait = rate and rate > 0 and math.max(1, most / 100) / rate or 1000
  return {'full', what, whole(figure), whole(most), whole(math.max(50, math.min(30000, wait)))}
end

local depth, max_depth = redis.call('ZCARD', DEADLINES), tonumber(set[1] or ARGV[10])
if depth >= max_depth then return full('depth', depth, max_depth) end
local bytes, max_bytes = (tonumber(counted[1]) or 0) + #payload, tonumber(set[2] or ARGV[11])
if bytes > max_bytes then return full('bytes', bytes, max_bytes) end
local share = memory_share()
if share >= 80 then return full('memory', share, 80) end
local queued_most = tonumber(set[4]) or tonumber(set[5])
if queued_most then
  local queued = redis.call('ZCARD', WAITING) + redis.call('HLEN', READY)
  if queued >= queued_most then return full('tenant', queued, queued_most) end
end

-- Its hash vanished, and its producer sends it again: it is a new job, but for the events it has.
if redis.call('ZSCORE', DEADLINES, id) then forget(id, tenant) end
redis.call('PERSIST', TOKENS)
local later = due > now
redis.call('HSET', JOB, 'state', later and 'delayed' or 'queued', 'lane', lane, 'entry', '', 'payload', payload,
  'digest', ARGV[5], 'epoch', '0', 'owner', '', 'deliveries', '0', 'result_ttl', ARGV[6], 'keep', ARGV[7],
  'queued_at', whole(now), 'deadline', whole(deadline))
redis.call('ZADD', DEADLINES, whole(deadline), id)
redis.call('HINCRBY', COUNTS, '/bytes', #payload)
redis.call('PERSIST', COUNTS)
if later then
  redis.call('HSET', JOB, 'due', whole(due))
  redis.call('ZADD', DELAYED, whole(due), id)
else
  line_up(id, tenant, lane)
end
return {'ok'}
