-- What housekeeping has to look at now.
--
-- keys    deadlines, delayed, counts
-- args    most of each, where the look through all live jobs goes on
-- answer  {jobs that are due, jobs that are late, some live jobs, where to go on (0: from the first), tenants with a line}
-- effects none
local now, most, at = whole(now_ms()), tonumber(ARGV[1]), tonumber(ARGV[2])
local some = redis.call('ZRANGE', KEYS[1], at, at + most - 1)
local tenants = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[3])) do
  if string.sub(name, 1, 1) ~= '/' and #tenants < most then tenants[#tenants + 1] = name end
end
return {redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, most),
  redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most), some, #some < most and 0 or at + most, tenants}
