-- Who is alive.
--
-- keys    workers
-- args    none
-- answer  {consumer, info, consumer, info, ...}
-- effects none
local now, known, alive = now_ms(), redis.call('HGETALL', KEYS[1]), {}
for i = 1, #known, 2 do
  local expiry, at = string.match(known[i + 1], '^(%d+) ()')
  if expiry and tonumber(expiry) > now then
    alive[#alive + 1] = known[i]
    alive[#alive + 1] = string.sub(known[i + 1], at)
  end
end
return alive
