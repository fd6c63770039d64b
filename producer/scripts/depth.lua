-- How full the queue is.
--
-- keys    lanes, counts, delayed
-- args    group
-- answer  per lane entries, entries pending at someone, jobs in their tenants' lines; then delayed jobs (flat)
-- effects none
local answers, names = {}, {'/high', '/normal', '/low'}
for i = 1, 3 do
  local pending = redis.pcall('XPENDING', KEYS[i], ARGV[1])
  answers[#answers + 1] = redis.call('XLEN', KEYS[i])
  answers[#answers + 1] = pending.err and 0 or pending[1]
  answers[#answers + 1] = tonumber(redis.call('HGET', KEYS[4], names[i])) or 0
end
answers[#answers + 1] = redis.call('ZCARD', KEYS[5])
return answers
