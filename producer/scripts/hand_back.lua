-- Give a worker's jobs up, so that another goes on with them at once.
--
-- keys    the three lanes, bell, then each job
-- args    group, consumer, the consumer to hand to, then per job: number of its lane, entry, epoch (empty: not claimed)
-- answer  per job 1, or 0: it was not the caller's to give
-- effects per job answered 1: the hash, if it was claimed: queued, nobody's under a new epoch, deliveries - 1;
--         the entry becomes pending at the handed-to consumer. Once: the bell.
local group, consumer, to = ARGV[1], ARGV[2], ARGV[3]
local answers, given = {}, false
for i = 5, #KEYS do
  local at = 3 * (i - 5) + 4
  local lane, entry, epoch = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local holder = pending_at(lane, group, entry)
  local ours = holder == consumer and (epoch == '' or owns(KEYS[i], epoch, consumer))
  if ours then
    if epoch ~= '' then
      redis.call('HSET', KEYS[i], 'state', 'queued', 'epoch', whole(tonumber(epoch) + 1), 'owner', '')
      redis.call('HINCRBY', KEYS[i], 'deliveries', -1)
      note(KEYS[i], tonumber(redis.call('HGET', KEYS[i], 'claim_offset')) or 0, 'handed back by ' .. epoch .. ' ' .. consumer)
    end
    redis.call('XCLAIM', lane, group, to, 0, entry, 'JUSTID')
    given = true
  end
  -- A re-sent call finds the entry where the first put it.
  answers[#answers + 1] = (ours or holder == to) and 1 or 0
end
if given then
  redis.call('XADD', KEYS[4], 'MAXLEN', 1, '*', 'b', '1')
  redis.call('EXPIRE', KEYS[4], 3600)
end
return answers
