-- Take over entries that nobody has renewed for a lease, whoever had them.
--
-- keys    the three lanes
-- args    group, consumer, lease (ms), most to take, three cursors
-- answer  three cursors, then a list as pull's, flat
-- effects 1. missing groups are created  2. entries become pending at the consumer
local group, consumer, lease, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local cursors, taken = {}, {}
for number = 1, 3 do
  local lane, cursor = KEYS[number], ARGV[4 + number]
  delivered(lane, group)
  local room = most - #taken
  if room > 0 then
    -- JUSTID: before 7.0 the full form fails to say which of the entries were deleted.
    local found = redis.call('XAUTOCLAIM', lane, group, consumer, lease, cursor, 'COUNT', room, 'JUSTID')
    cursor = found[1]
    for _, entry in ipairs(found[2]) do take(taken, number, lane, group, entry) end
  end
  cursors[number] = cursor
end
return {cursors, unpack(taken)}
