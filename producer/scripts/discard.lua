-- Give up a job whose keys hold what is none of ours: what is left of it becomes a dead letter.
--
-- keys    about the job
-- args    group, id, tenant, entry, lane's name, ended event, why, 1: only if a key of the job is of the wrong kind
-- answer  1, or 0: its keys are of the right kind, nothing was done
-- effects 1. keys of the wrong kind are deleted  2. a dead letter  3. the hash, if there is one: ended  4. the entry goes
local group, id, tenant, entry, lane = ARGV[1], ARGV[2], ARGV[3], ARGV[4], LANE[ARGV[5]]
local wrong = {}
for key, kind in pairs({[JOB] = 'hash', [TOKENS] = 'stream'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then wrong[#wrong + 1] = key end
end
if ARGV[8] == '1' and #wrong == 0 then return 0 end
for _, key in ipairs(wrong) do redis.call('DEL', key) end
local job = redis.call('HMGET', JOB, 'state', 'epoch', 'payload', 'history')
local is_live = job[1] == 'queued' or job[1] == 'running' or job[1] == 'delayed'
if is_live or (not job[1] and #wrong > 0) then bury(id, ARGV[7], job[3], job[4]) end
if is_live then
  local newest, offset = tail(TOKENS)
  local epoch = next_epoch(job[2], newest, now_ms())
  append(TOKENS, epoch, offset, 'e', ARGV[6])
  conclude(id, tenant, 'dead', epoch, offset)
else
  forget(id, tenant)
end
redis.call('XACK', lane, group, entry)
redis.call('XDEL', lane, entry)
return 1
