-- Take entries for a worker: its own it does not know of (after a lost reply), then what was handed back, then new ones
-- lane by lane in weighted turns.
--
-- keys    the three lanes, turns, control
-- args    group, consumer, room, ageing (ms), three weights, 1 to look for own entries else 0,
--         how many consumers' hand-backs to take, these, then the entries the worker knows of as `<number of lane>:<entry>`
-- answer  a list of {number of lane, entry, job id (none: a foreign entry, removed)}
-- effects 1. missing groups are created  2. entries become pending at the consumer  3. the lanes' credits
local group, consumer, room, ageing = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local weights = {tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])}
local handoffs = tonumber(ARGV[9])
local taken, last = {}, {}
for number = 1, 3 do last[number] = delivered(KEYS[number], group) end

local function take_from(holder, known, most)
  for number = 1, 3 do
    for _, held in ipairs(redis.call('XPENDING', KEYS[number], group, '-', '+', most, holder)) do
      if #taken >= room then return end
      if not known[number .. ':' .. held[1]] then
        redis.call('XCLAIM', KEYS[number], group, consumer, 0, held[1], 'JUSTID')
        take(taken, number, KEYS[number], group, held[1])
      end
    end
  end
end

if ARGV[8] == '1' then
  local known = {}
  for i = 10 + handoffs, #ARGV do known[ARGV[i]] = true end
  take_from(consumer, known, #ARGV + room)
end
if redis.call('HGET', KEYS[5], 'paused') == '1' then return taken end
for i = 10, 9 + handoffs do take_from(ARGV[i], {}, room) end

-- Smooth weighted turns: each lane with work earns its weight, the richest goes and pays what all earned together. Credits
-- are kept between calls and shared by all workers, so the shares hold also where each takes one entry at a time.
local left = room - #taken
if left <= 0 then return taken end
local now = now_ms()
local waiting, next_in, credits = {}, {1, 1, 1}, redis.call('HMGET', KEYS[4], 'high', 'normal', 'low')
for number = 1, 3 do
  waiting[number] = redis.call('XRANGE', KEYS[number], '(' .. last[number], '+', 'COUNT', left)
  credits[number] = tonumber(credits[number] or 0)
end
for _ = 1, left do
  local total, richest = 0, nil
  for number = 1, 3 do
    local head = waiting[number][next_in[number]]
    if head then
      local waited = math.max(0, now - tonumber(string.match(head[1], '^%d+')))
      local earned = weights[number] * (1 + math.min(7, waited / ageing))
      credits[number] = credits[number] + earned
      total = total + earned
      if not richest or credits[number] > credits[richest] then richest = number end
    end
  end
  if not richest then break end
  credits[richest] = credits[richest] - total
  next_in[richest] = next_in[richest] + 1
end

for number = 1, 3 do
  local count = next_in[number] - 1
  if count > 0 then
    redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', KEYS[number], '>')
    for i = 1, count do take(taken, number, KEYS[number], group, waiting[number][i][1]) end
  end
end
redis.call('HSET', KEYS[4], 'high', tostring(credits[1]), 'normal', tostring(credits[2]), 'low', tostring(credits[3]))
redis.call('EXPIRE', KEYS[4], 3600)
return taken
