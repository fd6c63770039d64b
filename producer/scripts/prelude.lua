-- What every script begins with. A script's own text opens with its keys, arguments, answer and effects, in order.

-- Redis' clock, in ms.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A whole number as Redis writes it (Lua would turn to exponents).
local function whole(number)
  return string.format('%.0f', number)
end

-- Epoch and offset of a job's last event; 0, 0 where there is none, nothing where the key holds no stream.
local function tail(tokens)
  local last = redis.pcall('XREVRANGE', tokens, '+', '-', 'COUNT', 1)
  if last.err then return nil end
  if not last[1] then return 0, 0 end
  local epoch, offset = string.match(last[1][1], '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(offset)
end

-- An epoch above all there were, the hash's and the last event's: also above the clock, so that a number lost in a failover
-- is not given out again soon.
local function next_epoch(old, newest, now)
  return math.max(tonumber(old) or 0, newest, now - 1) + 1
end

-- Whether (epoch, consumer) is the owner of a job.
local function owns(job, epoch, consumer)
  return redis.pcall('HGET', job, 'owner') == epoch .. ' ' .. consumer
end

-- Who has a lane's entry; nil where it is nobody's, or the group is gone.
local function pending_at(lane, group, entry)
  local found = redis.pcall('XPENDING', lane, group, entry, entry, 1)
  return not found.err and found[1] and found[1][2] or nil
end

-- The last entry the group has handed out. A group that is missing is made, from the lane's first entry on: what had
-- been handed out is handed out again, and claim sorts it out.
local function delivered(lane, group)
  local groups = redis.pcall('XINFO', 'GROUPS', lane)
  for _, known in ipairs(groups.err and {} or groups) do
    local info = {}
    for i = 1, #known, 2 do info[known[i]] = known[i + 1] end
    if info['name'] == group then return info['last-delivered-id'] end
  end
  redis.call('XGROUP', 'CREATE', lane, group, '0', 'MKSTREAM')
  return '0-0'
end

-- Note a lane's entry that is now the caller's: {number of the lane, entry, job id}. Without one, or with what can't be
-- one, it is foreign and removed; one that someone deleted is forgotten.
local function take(taken, number, lane, group, entry)
  local found = redis.call('XRANGE', lane, entry, entry)[1]
  if not found then
    redis.call('XACK', lane, group, entry)
    return
  end
  local fields, id = found[2], false
  for i = 1, #fields, 2 do
    if fields[i] == 'j' and string.find(fields[i + 1], '^%d+%.[%w_-]+%.[%w_-]+$') then id = fields[i + 1] end
  end
  if not id then
    redis.call('XACK', lane, group, entry)
    redis.call('XDEL', lane, entry)
  end
  taken[#taken + 1] = {number, entry, id}
end

-- Append to a job's events. False: the stream is past that id, so the writer is not the owner it takes itself for.
local function append(tokens, epoch, offset, ...)
  local added = redis.pcall('XADD', tokens, whole(epoch) .. '-' .. whole(offset), ...)
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'equal or smaller', 1, true) then return false end
    error(added.err)
  end
  return true
end

-- A history with another line, `<ms> <offset> <what>`; the oldest go where it would grow past 6 KB.
local function noted(history, now, offset, what)
  history = history or ''
  while #history > 6000 do history = string.match(history, '^[^\n]*\n(.*)$') or '' end
  return history .. whole(now) .. ' ' .. whole(offset) .. ' ' .. what .. '\n'
end

local function note(job, offset, what)
  redis.call('HSET', job, 'history', noted(redis.call('HGET', job, 'history'), now_ms(), offset, what))
end

-- What follows is for scripts about one job, whose keys are, in this order (Keys.about):
-- job, tokens, result, the three lanes, the tenant's waiting, ready and running jobs, counts, deadlines, delayed, control,
-- dead, workers
local JOB, TOKENS, RESULT, WAITING, READY, RUNNING = KEYS[1], KEYS[2], KEYS[3], KEYS[7], KEYS[8], KEYS[9]
local COUNTS, DEADLINES, DELAYED, CONTROL, DEAD, WORKERS = KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local LANE = {high = KEYS[4], normal = KEYS[5], low = KEYS[6]}
local HANDICAP_MS = {high = 0, normal = 30000, low = 120000}

-- Add to a count; at zero it goes.
local function count(name, by)
  if redis.call('HINCRBY', COUNTS, name, by) == 0 then redis.call('HDEL', COUNTS, name) end
end

-- Whether another of a tenant's jobs may stand on a lane: of those there wait at most `tenant_window`, so that whoever
-- comes new waits behind a bounded number of each tenant's; with those that run they are at most `tenant_running`.
local function has_turn(tenant)
  local ready = redis.call('HLEN', READY)
  local set = redis.call('HMGET', CONTROL, 'tenant_window', tenant .. ':running', 'tenant_running')
  if ready >= (tonumber(set[1]) or 64) then return false end
  local most = tonumber(set[2]) or tonumber(set[3])
  return not most or ready + redis.call('SCARD', RUNNING) < most
end

-- Put a job on its lane.
local function enter(id, lane)
  redis.call('HSET', READY, id, redis.call('XADD', LANE[lane], '*', 'j', id))
end

-- Move a tenant's jobs from its own line to the lanes, as many as have their turn.
local function refill(tenant)
  if redis.call('EXISTS', WAITING) == 0 then return end
  while has_turn(tenant) do
    local first = redis.call('ZPOPMIN', WAITING)[1]
    if not first then return end
    local lane, id = string.match(first, '^(%a+) (.+)$')
    count(tenant, -1)
    count('/' .. lane, -1)
    enter(id, lane)
  end
end

-- Have a job wait for a worker: on its lane, or in its tenant's line, in which a lower lane's job stands behind what comes
-- until its handicap is over, and no longer.
local function line_up(id, tenant, lane)
  if redis.call('EXISTS', WAITING) == 0 and has_turn(tenant) then return enter(id, lane) end
  local nth = redis.call('HINCRBY', COUNTS, '/nth', 1) % 4096
  redis.call('ZADD', WAITING, whole((now_ms() + HANDICAP_MS[lane]) * 4096 + nth), lane .. ' ' .. id)
  count(tenant, 1)
  count('/' .. lane, 1)
  refill(tenant)
end

-- A job waits and runs no more; its tenant's next has its turn.
local function step_out(id, tenant, lane)
  if lane and redis.call('ZREM', WAITING, lane .. ' ' .. id) == 1 then
    count(tenant, -1)
    count('/' .. lane, -1)
  end
  redis.call('HDEL', READY, id)
  redis.call('SREM', RUNNING, id)
  refill(tenant)
end

-- With the last live job goes what was counted of live ones, and the rest of the counts soon.
local function when_empty()
  if redis.call('EXISTS', DEADLINES) == 0 then
    redis.call('HDEL', COUNTS, '/bytes')
    redis.call('EXPIRE', COUNTS, 3600)
  end
end

-- A job whose hash is gone, or says that it ended, is counted nowhere; nothing of it stays for ever.
local function forget(id, tenant)
  redis.call('ZREM', DEADLINES, id)
  redis.call('ZREM', DELAYED, id)
  for lane in pairs(LANE) do step_out(id, tenant, lane) end
  if redis.call('PTTL', TOKENS) == -1 then redis.call('PEXPIRE', TOKENS, 3600000) end
  when_empty()
end

-- Whether a lane's entry is still to reach a worker, or is with one.
local function alive(lane, group, entry)
  if not entry or entry == '' or not redis.call('XRANGE', lane, entry, entry)[1] then return false end
  if pending_at(lane, group, entry) then return true end
  local ms, nth = string.match(entry, '^(%d+)-(%d+)$')
  local last_ms, last_nth = string.match(delivered(lane, group), '^(%d+)-(%d+)$')
  ms, nth, last_ms, last_nth = tonumber(ms), tonumber(nth), tonumber(last_ms), tonumber(last_nth)
  return ms > last_ms or (ms == last_ms and nth > last_nth)
end

-- A job's end, but for its event: nobody owns it, and everything of it has a time to live.
local function conclude(id, tenant, state, epoch, offset)
  local job = redis.call('HMGET', JOB, 'result_ttl', 'keep', 'lane', 'state')
  local ttl = tonumber(job[1]) or 3600000
  redis.call('HINCRBY', COUNTS, '/bytes', -redis.call('HSTRLEN', JOB, 'payload'))
  redis.call('HINCRBY', COUNTS, '/ended', 1)
  redis.call('HSET', JOB, 'state', state, 'epoch', whole(epoch), 'owner', '', 'offset', whole(offset),
    'ended_at', whole(now_ms()))
  redis.call('HDEL', JOB, 'payload', 'resolved', 'alone')
  redis.call('PEXPIRE', TOKENS, whole(ttl))
  redis.call('PEXPIRE', JOB, whole((tonumber(job[2]) or ttl) + 86400000))
  redis.call('ZREM', DEADLINES, id)
  if job[4] == 'delayed' then redis.call('ZREM', DELAYED, id) end
  step_out(id, tenant, job[4] == 'queued' and job[3])
  when_empty()
  return ttl
end

-- A dead letter: the job's id, why in a word, its payload and its history. The last 10,000 are kept, for 30 days at most.
local function bury(id, why, payload, history)
  redis.call('XADD', DEAD, 'MAXLEN', '~', 10000, '*', 'j', id, 'r', why, 'p', payload or '', 'h', history or '')
  redis.call('EXPIRE', DEAD, 30 * 86400)
end

-- Whether losing a job's owner counts as the job's own fault: nothing was added since the claim, and it was the first
-- such loss, or the job ran alone. (Neighbours of one that kills its worker are so never blamed twice.)
local function is_to_blame(job, offset)
  local at = redis.call('HMGET', job, 'claim_offset', 'strikes', 'alone')
  return tonumber(at[1]) == offset and ((tonumber(at[2]) or 0) == 0 or at[3] == '1')
end
