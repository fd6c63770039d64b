-- How full each lane is.
--
-- keys    lanes
-- args    group
-- answer  per lane {entries, entries pending at someone}
-- effects none
local answers = {}
for i, lane in ipairs(KEYS) do
  local pending = redis.pcall('XPENDING', lane, ARGV[1])
  answers[i] = {redis.call('XLEN', lane), pending.err and 0 or pending[1]}
end
return answers
