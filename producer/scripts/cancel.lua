-- End a job from outside: a takeover by nobody.
--
-- keys    job, tokens, the three lanes
-- args    group, how it ends (cancelled), ended event, nonce
-- answer  {'queued' | 'running' | 'ended', state now} | {'unknown'}; a re-sent call gets the first one's answer
-- effects 1. the end event under a new epoch  2. the hash: ended, and everything's time to live
--         3. the lane's entry, if someone had it, is acknowledged and deleted; else it stays for claim to remove, since
--            deleting what was never delivered would blind the group's lag, by which autoscalers count
local job = redis.call('HMGET', KEYS[1], 'state', 'lane', 'entry', 'epoch', 'nonce')
local state = job[1]
if not state then return {'unknown', false} end
local nonce, met = string.match(job[5] or '', '^(%S+) (%S+)$')
if nonce == ARGV[4] then return {met, state} end
if state ~= 'queued' and state ~= 'running' then return {'ended', state} end

local _, offset = tail(KEYS[2])
local epoch = next_epoch(job[4], KEYS[2])
append(KEYS[2], epoch, offset, 'e', ARGV[3])
conclude(KEYS[1], KEYS[2], ARGV[2], epoch, offset)
redis.call('HSET', KEYS[1], 'nonce', ARGV[4] .. ' ' .. state)
local lane = KEYS[({high = 3, normal = 4, low = 5})[job[2]]]
if lane and pending_at(lane, ARGV[1], job[3]) then
  redis.call('XACK', lane, ARGV[1], job[3])
  redis.call('XDEL', lane, job[3])
end
return {state, ARGV[2]}
