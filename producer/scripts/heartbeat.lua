-- Say that a worker lives.
--
-- keys    workers
-- args    consumer, info, time to live (ms)
-- answer  nothing
-- effects 1. the worker's entry `<expiry in ms> <info>`  2. others that are past theirs go  3. the hash lives as long
local now, ttl = now_ms(), tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], whole(now + ttl) .. ' ' .. ARGV[2])
local known = redis.call('HGETALL', KEYS[1])
for i = 1, #known, 2 do
  if (tonumber(string.match(known[i + 1], '^%d+')) or 0) <= now then redis.call('HDEL', KEYS[1], known[i]) end
end
redis.call('PEXPIRE', KEYS[1], math.max(ttl, redis.call('PTTL', KEYS[1])))
