-- Start the leases of a worker's jobs anew, where they are still its own.
--
-- keys    the three lanes, then each job
-- args    group, consumer, then per job: number of its lane, entry, epoch (empty: pulled but not claimed)
-- answer  per job 1 or 0
-- effects per job answered 1: the entry's idle time is 0 again
local group, consumer, answers = ARGV[1], ARGV[2], {}
for i = 4, #KEYS do
  local at = 3 * (i - 4) + 3
  local lane, entry, epoch = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local ours = (epoch == '' or owns(KEYS[i], epoch, consumer)) and pending_at(lane, group, entry) == consumer
  if ours then redis.call('XCLAIM', lane, group, consumer, 0, entry, 'JUSTID') end
  answers[#answers + 1] = ours and 1 or 0
end
return answers
