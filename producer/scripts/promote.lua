-- Have a delayed job wait for a worker, if it is due.
--
-- keys    about the job
-- args    id, tenant
-- answer  'ok' | 'not due' | 'not delayed' | 'gone'
-- effects the hash: queued; the lane's entry, or its tenant's line has it
local id, tenant = ARGV[1], ARGV[2]
local job = redis.call('HMGET', JOB, 'state', 'lane', 'due')
if job[1] ~= 'delayed' then
  redis.call('ZREM', DELAYED, id)
  return job[1] and 'not delayed' or 'gone'
end
if (tonumber(job[3]) or 0) > now_ms() then return 'not due' end
redis.call('ZREM', DELAYED, id)
redis.call('HSET', JOB, 'state', 'queued')
line_up(id, tenant, job[2])
return 'ok'
