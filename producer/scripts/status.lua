-- Look at a job.
--
-- keys    job, tokens
-- args    none
-- answer  nothing if there is none, else {state, lane, deliveries, owner, queued_at, claimed_at, ended_at, offset,
--         id of its last event (none: it has no events)}
-- effects none
local job = redis.call('HMGET', KEYS[1], 'state', 'lane', 'deliveries', 'owner', 'queued_at', 'claimed_at', 'ended_at',
  'offset')
if not job[1] then return {} end
local epoch, offset = tail(KEYS[2])
job[8] = job[8] or whole(offset)
job[9] = epoch > 0 and whole(epoch) .. '-' .. whole(offset)
return job
