-- Forget consumers that are gone and dead letters that are old.
--
-- keys    the three lanes, workers, dead
-- args    group, ms after which a consumer without entries is gone, the consumer that hand-backs are kept at, ms that a dead
--         letter is kept
-- answer  consumers forgotten
-- effects consumers that are idle, hold nothing and have no heartbeat are deleted (with entries they would be lost with
--         them); dead letters past their time are deleted
local now, forgotten = now_ms(), 0
for number = 1, 3 do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[number], ARGV[1])
  for _, known in ipairs(consumers.err and {} or consumers) do
    local info = {}
    for i = 1, #known, 2 do info[known[i]] = known[i + 1] end
    local beat = redis.call('HGET', KEYS[4], info.name)
    local lives = beat and tonumber(string.match(beat, '^%d+')) > now
    local kept = string.sub(info.name, 1, #ARGV[3]) == ARGV[3]
    if info.pending == 0 and info.idle > tonumber(ARGV[2]) and not lives and not kept then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[number], ARGV[1], info.name)
      forgotten = forgotten + 1
    end
  end
end
if redis.call('EXISTS', KEYS[5]) == 1 then
  redis.call('XTRIM', KEYS[5], 'MINID', whole(math.max(0, now - tonumber(ARGV[4]))))
end
return forgotten
