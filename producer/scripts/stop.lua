-- End a job from outside: a takeover by nobody.
--
-- keys    about the job
-- args    group, id, tenant, how it ends (cancelled, expired), ended event, nonce
-- answer  {'queued' | 'running' | 'delayed' | 'ended', state now} | {'unknown'} | {'early', state}: expired, but it has time
--         left; a re-sent call gets the first one's answer
-- effects 1. the end event under a new epoch  2. the hash: ended, and everything's time to live
--         3. the lane's entry, if someone had it, is acknowledged and deleted; else it stays for claim to remove, since
--            deleting what was never delivered would blind the group's lag, by which autoscalers count
local id, tenant = ARGV[2], ARGV[3]
local job = redis.call('HMGET', JOB, 'state', 'lane', 'entry', 'epoch', 'nonce', 'deadline')
local state = job[1]
if not state then return {'unknown', false} end
local nonce, met = string.match(job[5] or '', '^(%S+) (%S+)$')
if nonce == ARGV[6] then return {met, state} end
if state ~= 'queued' and state ~= 'running' and state ~= 'delayed' then return {'ended', state} end
if ARGV[4] == 'expired' and (tonumber(job[6]) or 0) > now_ms() then return {'early', state} end

local newest, offset = tail(TOKENS)
if not newest then
  redis.call('DEL', TOKENS)
  newest, offset = 0, 0
end
local epoch = next_epoch(job[4], newest, now_ms())
append(TOKENS, epoch, offset, 'e', ARGV[5])
local lane, entry = LANE[job[2]], job[3]
conclude(id, tenant, ARGV[4], epoch, offset)
redis.call('HSET', JOB, 'nonce', ARGV[6] .. ' ' .. state)
if lane and entry ~= '' and pending_at(lane, ARGV[1], entry) then
  redis.call('XACK', lane, ARGV[1], entry)
  redis.call('XDEL', lane, entry)
end
return {state, ARGV[4]}
