-- From where an idle worker has to listen so that it misses nothing.
--
-- keys    the three lanes, bell
-- args    group, then the consumers whose hand-backs it would take
-- answer  nothing if something was handed back already; else per stream the id after which there was nothing to take yet
-- effects missing groups are created
local after = {}
for number = 1, 3 do
  after[number] = delivered(KEYS[number], ARGV[1])
  for i = 2, #ARGV do
    if redis.call('XPENDING', KEYS[number], ARGV[1], '-', '+', 1, ARGV[i])[1] then return {} end
  end
end
local last = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
after[4] = last and last[1] or '0-0'
return after
