-- Become the owner of a job whose entry is pending at the caller.
--
-- keys    about the job
-- args    group, id, tenant, consumer, lane's name, entry, started event, nonce, 1 if the last owner's lease ran out else 0
-- answer  {'gone', state}: the job is over or never was, or has another entry; this entry is removed
--         {'lost'}: the entry is pending at another, or nobody
--         {'late'}: its deadline has passed; end it as expired
--         {'broken', why}: what lies at its keys is none of ours; discard it
--         {'ok', epoch, offset, deliveries, strikes, payload, resolved, fingerprint, queued_at, claimed_at, deadline, history,
--         blobs of tokens so far...}
-- effects 1. a start event under a new epoch  2. the hash: running, owner, deliveries + 1, strikes + 1 if it is to blame
--         3. it is one of its tenant's running ones, and the tenant's next has its turn. None if the nonce is the last.
local group, id, tenant, consumer, entry, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6], ARGV[8]
local lane = LANE[ARGV[5]]
local job = redis.pcall('HMGET', JOB, 'state', 'entry', 'epoch', 'owner', 'nonce', 'deliveries', 'payload',
  'resolved', 'fingerprint', 'queued_at', 'claimed_at', 'lane', 'deadline', 'strikes', 'history')
if job.err then return {'broken', job.err} end
local state, epoch, deliveries, strikes, claimed_at = job[1], job[3], tonumber(job[6]) or 0, tonumber(job[14]) or 0, job[11]
local named = job[2] ~= '' and job[2] or redis.call('HGET', READY, id)
if (state ~= 'queued' and state ~= 'running') or named ~= entry or job[12] ~= ARGV[5] then
  redis.call('XACK', lane, group, entry)
  redis.call('XDEL', lane, entry)
  return {'gone', state}
end
if pending_at(lane, group, entry) ~= consumer then return {'lost'} end
local newest, offset = tail(TOKENS)
if not newest then return {'broken', 'its events are no stream'} end

local history = job[15]
local resent = job[5] == nonce and job[4] == epoch .. ' ' .. consumer
if not resent then
  local now = now_ms()
  if (tonumber(job[13]) or math.huge) <= now then return {'late'} end
  if ARGV[9] == '1' and state == 'running' then
    local blamed = is_to_blame(JOB, offset)
    if blamed then strikes = strikes + 1 end
    history = noted(history, now, offset, (blamed and 'strike: ' or '') .. 'the lease of ' .. job[4] .. ' ran out')
  end
  epoch = whole(next_epoch(epoch, newest, now))
  deliveries = deliveries + 1
  claimed_at = whole(now)
  if not append(TOKENS, epoch, offset, 's', ARGV[7], 'n', deliveries) then
    return {'broken', 'its events are past every epoch of its hash: someone else wrote there'}
  end
  history = noted(history, now, offset, 'claimed by ' .. epoch .. ' ' .. consumer)
  redis.call('HSET', JOB, 'state', 'running', 'entry', entry, 'epoch', epoch, 'owner', epoch .. ' ' .. consumer,
    'deliveries', deliveries, 'strikes', strikes, 'alone', '0', 'claim_offset', whole(offset), 'claimed_at', claimed_at,
    'nonce', nonce, 'history', history)
  redis.call('HDEL', READY, id)
  redis.call('SADD', RUNNING, id)
  refill(tenant)
end

local answer = {'ok', epoch, whole(offset), whole(deliveries), whole(strikes), job[7], job[8], job[9], job[10] or '0',
  claimed_at, job[13] or '0', history or ''}
for _, event in ipairs(offset > 0 and redis.call('XRANGE', TOKENS, '-', '+') or {}) do
  if event[2][1] == 't' then answer[#answer + 1] = event[2][2] end
end
return answer
