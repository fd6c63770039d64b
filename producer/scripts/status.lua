-- Look at a job.
--
-- keys    job, tokens
-- args    none
-- answer  nothing if there is none, else {state, lane, deliveries, owner, queued_at, claimed_at, ended_at, offset, strikes,
--         deadline, due, requeued_as, history, id of its last event (none: it has no events)}
-- effects none
local job = redis.call('HMGET', KEYS[1], 'state', 'lane', 'deliveries', 'owner', 'queued_at', 'claimed_at', 'ended_at',
  'offset', 'strikes', 'deadline', 'due', 'requeued_as', 'history')
if not job[1] then return {} end
local epoch, offset = tail(KEYS[2])
job[8] = job[8] or whole(offset or 0)
job[14] = (epoch or 0) > 0 and whole(epoch) .. '-' .. whole(offset)
return job
