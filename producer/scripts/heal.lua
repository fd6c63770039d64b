-- Look whether a live job is where a worker or housekeeping will find it, and put it there if not.
--
-- keys    about the job
-- args    group, id, tenant
-- answer  'ok' | 'gone': no such job | 'ended' | 'healed'
-- effects gone, ended: it is counted nowhere any more. healed: a new entry on its lane, or it is among the delayed again
local group, id, tenant = ARGV[1], ARGV[2], ARGV[3]
local job = redis.call('HMGET', JOB, 'state', 'lane', 'entry', 'owner', 'due')
local state, lane, entry = job[1], job[2], job[3]
if state ~= 'queued' and state ~= 'running' and state ~= 'delayed' then
  forget(id, tenant)
  return state and 'ended' or 'gone'
end
if state == 'delayed' then
  return redis.call('ZADD', DELAYED, 'NX', job[5] or '0', id) == 1 and 'healed' or 'ok'
end
if entry == '' then
  entry = redis.call('HGET', READY, id)
  if not entry then
    if redis.call('ZSCORE', WAITING, lane .. ' ' .. id) then return 'ok' end
    line_up(id, tenant, lane)
    return 'healed'
  end
  if alive(LANE[lane], group, entry) then return 'ok' end
  enter(id, lane)
  return 'healed'
end
if alive(LANE[lane], group, entry) then return 'ok' end
-- Its entry is gone. A worker that lives needs none to finish; if it is lost after all, its heartbeat ends.
local consumer = string.match(job[4] or '', '^%d+ (.+)$')
local beat = consumer and redis.call('HGET', WORKERS, consumer)
if beat and tonumber(string.match(beat, '^%d+')) > now_ms() then return 'ok' end
redis.call('HSET', JOB, 'entry', redis.call('XADD', LANE[lane], '*', 'j', id))
return 'healed'
