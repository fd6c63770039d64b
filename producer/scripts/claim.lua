-- Become the owner of a job whose entry is pending at the caller.
--
-- keys    job, tokens, its lane
-- args    group, consumer, lane's name, entry, started event, nonce
-- answer  {'gone', state}: the job is over or never was, or has another entry; this entry is removed
--         {'lost'}: the entry is pending at another, or nobody
--         {'ok', epoch, offset, deliveries, payload, resolved, fingerprint, queued_at, claimed_at, {blobs of tokens so far}}
-- effects 1. a start event under a new epoch  2. the hash: running, owner, deliveries + 1. None if the nonce is the last.
local group, consumer, entry, nonce = ARGV[1], ARGV[2], ARGV[4], ARGV[6]
local job = redis.call('HMGET', KEYS[1], 'state', 'entry', 'epoch', 'owner', 'nonce', 'deliveries', 'payload',
  'resolved', 'fingerprint', 'queued_at', 'claimed_at', 'lane')
local state, epoch, deliveries, claimed_at = job[1], job[3], tonumber(job[6]) or 0, job[11]
if (state ~= 'queued' and state ~= 'running') or job[2] ~= entry or job[12] ~= ARGV[3] then
  redis.call('XACK', KEYS[3], group, entry)
  redis.call('XDEL', KEYS[3], entry)
  return {'gone', state}
end
if pending_at(KEYS[3], group, entry) ~= consumer then return {'lost'} end

local _, offset = tail(KEYS[2])
local resent = job[5] == nonce and job[4] == epoch .. ' ' .. consumer
if not resent then
  epoch = whole(next_epoch(epoch, KEYS[2]))
  deliveries = deliveries + 1
  claimed_at = whole(now_ms())
  if not append(KEYS[2], epoch, offset, 's', ARGV[5], 'n', deliveries) then
    error('the events of ' .. KEYS[1] .. ' are past every epoch of its hash: someone else wrote there')
  end
  redis.call('HSET', KEYS[1], 'state', 'running', 'epoch', epoch, 'owner', epoch .. ' ' .. consumer,
    'deliveries', deliveries, 'claimed_at', claimed_at, 'nonce', nonce)
end

local blobs = {}
for _, event in ipairs(offset > 0 and redis.call('XRANGE', KEYS[2], '-', '+') or {}) do
  if event[2][1] == 't' then blobs[#blobs + 1] = event[2][2] end
end
return {'ok', epoch, whole(offset), whole(deliveries), job[7], job[8], job[9], job[10] or '0', claimed_at, blobs}
