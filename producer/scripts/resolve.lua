-- Store what a job's first owner decided, once.
--
-- keys    job, tokens
-- args    epoch, consumer, blob, fingerprint of the model
-- answer  {'ok', blob, fingerprint}: work by these | {'mismatch', blob, fingerprint}: of another model, with tokens out
--         {'fenced'}: the caller is not the owner
-- effects blob and fingerprint in the hash: if there were none, or another model's that has published nothing
if not owns(KEYS[1], ARGV[1], ARGV[2]) then return {'fenced', false, false} end
local stored = redis.call('HMGET', KEYS[1], 'resolved', 'fingerprint')
if stored[1] and stored[2] == ARGV[4] then return {'ok', stored[1], stored[2]} end
if stored[1] then
  local _, offset = tail(KEYS[2])
  if offset > 0 then return {'mismatch', stored[1], stored[2]} end
end
redis.call('HSET', KEYS[1], 'resolved', ARGV[3], 'fingerprint', ARGV[4])
return {'ok', ARGV[3], ARGV[4]}
