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

-- Epoch and offset of a job's last event; 0, 0 where there is none.
local function tail(tokens)
  local last = redis.call('XREVRANGE', tokens, '+', '-', 'COUNT', 1)[1]
  if not last then return 0, 0 end
  local epoch, offset = string.match(last[1], '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(offset)
end

-- An epoch above all there were: also above the clock, so that a number lost in a failover is not given out again soon.
local function next_epoch(old, tokens)
  local newest = tail(tokens)
  return math.max(tonumber(old) or 0, newest, now_ms() - 1) + 1
end

-- Whether (epoch, consumer) is the owner of a job.
local function owns(job, epoch, consumer)
  return redis.call('HGET', job, 'owner') == epoch .. ' ' .. consumer
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

-- A job's end, but for its event: nobody owns it, and everything of it has a time to live.
local function conclude(job, tokens, state, epoch, offset)
  local ttl = tonumber(redis.call('HGET', job, 'result_ttl')) or 3600000
  redis.call('HSET', job, 'state', state, 'epoch', whole(epoch), 'owner', '', 'offset', whole(offset),
    'ended_at', whole(now_ms()))
  redis.call('HDEL', job, 'payload', 'resolved')
  redis.call('PEXPIRE', tokens, whole(ttl))
  redis.call('PEXPIRE', job, whole(ttl + 86400000))
  return ttl
end

