-- Append tokens to the events of many jobs, each judged on its own.
--
-- keys    per job: job, tokens
-- args    consumer, then per job: epoch, start, count, blob (count 0: nothing new, the answer alone is wanted)
-- answer  per job: 'ok' | 'already' | 'fenced' | 'gap' | 'broken' (its events are no stream), then tokens in the stream now
--         (flat: lists in lists cost as much as all the rest)
-- effects per job answered ok with count > 0: a tokens event `<epoch>-<start + count>`
local answers = {}
for i = 1, #KEYS, 2 do
  local job, tokens, at = KEYS[i], KEYS[i + 1], 2 * i
  local epoch, start, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local newest, offset = tail(tokens)
  local outcome
  if not owns(job, epoch, ARGV[1]) then
    outcome, offset = 'fenced', offset or 0
  elseif not newest then
    outcome, offset = 'broken', 0
  elseif offset ~= start then
    outcome = offset >= start + count and 'already' or 'gap'
  elseif count > 0 and not append(tokens, epoch, start + count, 't', ARGV[at + 3]) then
    outcome = 'fenced'
  else
    outcome, offset = 'ok', start + count
  end
  answers[#answers + 1] = outcome
  answers[#answers + 1] = offset
end
return answers
