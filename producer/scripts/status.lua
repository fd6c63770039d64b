-- Look at a job.
--
-- keys    job, tokens
-- args    none
-- answer  nothing if there is none, else {state, lane, deliveries, consumer, queued_at, claimed_at, ended_at, offset,
--         1 if it has events}
-- effects none
local job = redis.call('HMGET', KEYS[1], 'state', 'lane', 'deliveries', 'consumer', 'queued_at', 'claimed_at', 'ended_at',
  'offset')
if not job[1] then return {} end
if not job[8] then
  local _, offset = tail(KEYS[2])
  job[8] = whole(offset)
end
job[9] = redis.call('EXISTS', KEYS[2])
return job
