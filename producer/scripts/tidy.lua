-- Forget consumers that are gone and dead letters that are old.
--
-- keys    the three lanes, dead
-- args    group, ms after which a consumer without entries is gone, ms that a dead letter is kept
-- answer  consumers forgotten
-- effects consumers that are idle and hold nothing are deleted (with entries they would be lost with them; one that comes
--         again is made again); dead letters past their time are deleted
local forgotten = 0
for number = 1, 3 do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[number], ARGV[1])
  for _, known in ipairs(consumers.err and {} or consumers) do
    local info = {}
    for i = 1, #known, 2 do info[known[i]] = known[i + 1] end
    if info.pending == 0 and info.idle > tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[number], ARGV[1], info.name)
      forgotten = forgotten + 1
    end
  end
end
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('XTRIM', KEYS[4], 'MINID', whole(math.max(0, now_ms() - tonumber(ARGV[3]))))
end
return forgotten
