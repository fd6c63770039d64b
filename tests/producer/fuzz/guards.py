"""The checks of the scripts, and each one's absence: a text of a script, and what stands there where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from producer.calls.script import script
from tests.producer.fuzz.world import Breaking, broken_by

OWNS = "return redis.pcall('HGET', job, 'owner') == epoch .. ' ' .. consumer"
OWNER = "(redis.pcall('HGET', job, 'owner') or '')"
OWNERS = {
    "no epoch check": (OWNS, f"return string.match({OWNER}, ' (.*)') == consumer"),
    "no consumer check": (OWNS, f"return string.match({OWNER}, '(.*) ') == epoch"),
    "no owner check in publish": ("if not owns(job, epoch, ARGV[1]) then", "if false then"),
    "no owner check in finish": ("if not owns(JOB, epoch, consumer) then\n  return", "if false then\n  return"),
    "no owner check in resolve": (
        "if not owns(KEYS[1], ARGV[1], ARGV[2]) then return {'fenced'",
        "if false then return {'fenced'",
    ),
    "no owner check in renew": ("(epoch == '' or owns(KEYS[i], epoch, consumer)) and", ""),
    "no holder check in renew": ("and pending_at(lane, group, entry) == consumer", ""),
    "no owner check in hand_back": ("and (epoch == '' or owns(KEYS[i], epoch, consumer))", ""),
    "no holder check in hand_back": ("local ours = holder == consumer and", "local ours ="),
    "no holder check in claim": ("if pending_at(lane, group, entry) ~= consumer then return {'lost'} end", ""),
    "no owner check in alone": ("if not owns(KEYS[1], ARGV[1], ARGV[2]) then return 0 end", ""),
    "no owner check in retry": ("if not owns(JOB, epoch, consumer) then return {'fenced', '0'} end", ""),
    "no holder check in retry": (
        "if pending_at(lane, group, entry) == consumer then redis.call('XCLAIM', lane, group, ARGV[11]",
        "if true then redis.call('XCLAIM', lane, group, ARGV[11]",
    ),
    "a claim looks at no epoch": ("math.max(tonumber(old) or 0, newest, now - 1)", "math.max(newest, now - 1)"),
    "a claim looks at no event": (
        "math.max(tonumber(old) or 0, newest, now - 1)",
        "math.max(tonumber(old) or 0, now - 1)",
    ),
    "a claim may keep the epoch": ("epoch = whole(next_epoch(epoch, newest, now))", "epoch = whole(now)"),
    "a hand-back keeps the owner": (
        ", 'epoch', whole(tonumber(epoch) + 1), 'owner', '')\n      redis",
        ")\n      redis",
    ),
    "a retry keeps the owner": (
        "whole(tonumber(epoch) + 1), 'owner', '', 'strikes'",
        "whole(tonumber(epoch)), 'strikes'",
    ),
    "an end keeps the owner": ("'epoch', whole(epoch), 'owner', '', ", ""),
}
STREAMS = {
    "no look at the entry in claim": (" or named ~= entry or job[12] ~= ARGV[5]", ""),
    "no look at the lane in claim": (" or job[12] ~= ARGV[5]", ""),
    "no look at the state in claim": ("(state ~= 'queued' and state ~= 'running') or", ""),
    "no tail check in publish": ("elseif offset ~= start then", "elseif false then"),
    "no tail check in finish": ("if offset ~= start and offset ~= start + count_new then", "if false then"),
    "no look at the last tokens in finish": ("if offset ~= after and not append(", "if not append("),
    "publish takes any events": ("elseif not newest then\n    outcome", "elseif false then\n    outcome"),
    "finish takes any events": ("if not newest then return {'broken', '0'} end\nif", "offset = offset or start\nif"),
    "claim takes any events": (
        "if not newest then return {'broken', 'its events",
        "if false then return {'broken', 'its events",
    ),
    "stop takes any events": ("redis.call('DEL', TOKENS)\n  newest", "newest"),
    "claim takes any hash": (
        "if job.err then return {'broken', job.err} end",
        "if job.err then return {'gone', false} end",
    ),
    "events live for ever": ("redis.call('PEXPIRE', TOKENS, whole(ttl))", ""),
    "an ended job lives for ever": ("redis.call('PEXPIRE', JOB, whole((tonumber(job[2]) or ttl) + 86400000))", ""),
    "a finished entry stays": ("redis.call('XDEL', LANE[ARGV[7]], entry)", ""),
    "what is held is given again": ("if not known[number .. ':' .. held[1]] then", "if true then"),
    "a pause is not looked at": ("if redis.call('HGET', KEYS[5], 'paused') == '1' then return taken end", ""),
    "foreign entries stay": ("redis.call('XDEL', lane, entry)\n  end\n  taken", "\n  end\n  taken"),
}
REPEATS = {
    "no nonce in claim": ("job[5] == nonce and", "false and"),
    "no nonce in cancel": ("if nonce == ARGV[6] then", "if false then"),
    "decisions are made anew": ("if stored[1] and stored[2] == ARGV[4] then", "if false then"),
    "ids are not known again": ("if known[1] or known[2] then", "if false then"),
    "all content is the same": ("known[2] == ARGV[5] and 'known' or 'conflict'", "'known'"),
    "a re-sent retry is another": ("if after[1] == owner then", "if false then"),
    "a re-sent discard is another": ("if is_live or (not job[1] and #wrong > 0) then", "if is_live or not job[1] then"),
    "a look does not look before a discard": ("if ARGV[8] == '1' and #wrong == 0 then return 0 end", ""),
    "a letter is settled twice": (
        "return redis.call('XDEL', DEAD, ARGV[1])",
        "redis.call('XDEL', DEAD, ARGV[1]) return 1",
    ),
    "a settled letter makes a hash": ("and redis.call('EXISTS', JOB) == 1 then", "then"),
    "a settled letter stays": ("return redis.call('XDEL', DEAD, ARGV[1])", "return redis.call('XLEN', DEAD)"),
}
BLAME = {
    "each loss is blamed": (
        "return tonumber(at[1]) == offset and ((tonumber(at[2]) or 0) == 0 or at[3] == '1')",
        "return true",
    ),
    "what adds tokens is blamed": ("return tonumber(at[1]) == offset and", "return"),
    "neighbours are blamed twice": ("((tonumber(at[2]) or 0) == 0 or at[3] == '1')", "true"),
    "nothing is blamed twice": (" or at[3] == '1')", ")"),
    "a claim leaves it alone": ("'alone', '0', ", ""),
    "a claim counts no strike": ("if blamed then strikes = strikes + 1 end", ""),
    "a claim from a queue counts a strike": ("if ARGV[9] == '1' and state == 'running' then", "if ARGV[9] == '1' then"),
    "a retry counts no strike": ("+ (blamed and 1 or 0)", ""),
    "a hand-back is counted": ("redis.call('HINCRBY', KEYS[i], 'deliveries', -1)", ""),
    "a dead job leaves no letter": ("if reason == 'dead' then bury(", "if false then bury("),
    "what is discarded leaves no letter": ("then bury(id, ARGV[7], job[3], job[4]) end", "then end"),
    "a zombie's letter": (
        "local owner = epoch .. ' ' .. consumer\nlocal newest",
        "local owner = epoch .. ' ' .. consumer\nif ARGV[13] == 'dead' then bury(id, 'x', '', '') end\nlocal newest",
    ),
}
TIMES = {
    "no look at the deadline in claim": ("if (tonumber(job[13]) or math.huge) <= now then return {'late'} end", ""),
    "no look at the deadline in stop": ("if ARGV[4] == 'expired' and", "if false and"),
    "no look at the state in stop": (
        "if state ~= 'queued' and state ~= 'running' and state ~= 'delayed' then return {'ended', state} end\nif ARGV",
        "if ARGV",
    ),
    "no look at the state in promote": ("if job[1] ~= 'delayed' then", "if false then"),
    "no look at the time in promote": ("if (tonumber(job[3]) or 0) > now_ms() then return 'not due' end", ""),
    "a promoted job is still delayed": (
        "redis.call('ZREM', DELAYED, id)\nredis.call('HSET', JOB, 'state', 'queued')",
        "redis.call('HSET', JOB, 'state', 'queued')",
    ),
    "no look at the time in enqueue": ("local later = due > now", "local later = false"),
    "what is due is not looked for": (
        "'-inf', now, 'LIMIT', 0, most),\n  redis",
        "'-inf', 0, 'LIMIT', 0, most),\n  redis",
    ),
    "what is late is not looked for": (
        "redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now,",
        "redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf',",
    ),
    "a retry keeps the entry": ("'state', 'delayed', 'entry', '', 'due', due", "'state', 'delayed', 'due', due"),
    "a retry leaves it on its lane": ("redis.call('XDEL', lane, entry)\nstep_out", "step_out"),
    "a retry keeps its turn": ("step_out(id, tenant, nil)", ""),
    "an ended job keeps its deadline": ("redis.call('ZREM', DEADLINES, id)\n  if job[4]", "if job[4]"),
    "an ended job stays delayed": ("if job[4] == 'delayed' then redis.call('ZREM', DELAYED, id) end", ""),
}
TENANTS = {
    "no window": ("if ready >= (tonumber(set[1]) or 64) then return false end", ""),
    "no limit": ("return not most or ready + redis.call('SCARD', RUNNING) < most", "return true"),
    "what runs does not count": ("ready + redis.call('SCARD', RUNNING) < most", "ready < most"),
    "no limit of one tenant's own": ("tonumber(set[2]) or tonumber(set[3])", "tonumber(set[3])"),
    "who comes late overtakes the line": (
        "if redis.call('EXISTS', WAITING) == 0 and has_turn(tenant) then",
        "if has_turn(tenant) then",
    ),
    "an end leaves no room for the next": (
        "redis.call('SREM', RUNNING, id)\n  refill(tenant)",
        "redis.call('SREM', RUNNING, id)",
    ),
    "an ended job still runs": ("redis.call('SREM', RUNNING, id)\n  refill", "refill"),
    "an ended job is still ready": ("redis.call('HDEL', READY, id)\n  redis.call('SREM'", "redis.call('SREM'"),
    "an ended job stays in its line": (
        "step_out(id, tenant, job[4] == 'queued' and job[3])",
        "step_out(id, tenant, nil)",
    ),
    "a claimed job is still ready": ("redis.call('HDEL', READY, id)\n  redis.call('SADD'", "redis.call('SADD'"),
    "a claimed job does not run": ("redis.call('SADD', RUNNING, id)", ""),
    "a claim gives no turn": ("redis.call('SADD', RUNNING, id)\n  refill(tenant)", "redis.call('SADD', RUNNING, id)"),
    "counts grow for ever": ("count(tenant, -1)\n    count('/' .. lane, -1)\n    enter", "enter"),
    "a job that steps out is still counted": (
        "== 1 then\n    count(tenant, -1)\n    count('/' .. lane, -1)\n  end\n  redis.call('HDEL'",
        "then end\n  redis.call('HDEL'",
    ),
    "what vanished is still counted when it comes back": (
        "if redis.call('ZSCORE', DEADLINES, id) then forget(id, tenant) end",
        "",
    ),
    "events of what comes back expire": ("redis.call('PERSIST', TOKENS)", ""),
    "refill does nothing": ("refill(ARGV[1])", ""),
    "bytes are not counted": ("redis.call('HINCRBY', COUNTS, '/bytes', #payload)", ""),
    "bytes grow for ever": ("redis.call('HINCRBY', COUNTS, '/bytes', -redis.call('HSTRLEN', JOB, 'payload'))", ""),
    "no end of depth": ("if depth >= max_depth then", "if false then"),
    "no end of a tenant's queue": ("if queued >= queued_most then", "if false then"),
    "counts live for ever": ("redis.call('EXPIRE', COUNTS, 3600)\n  end\nend", "end\nend"),
    "counts are let go while jobs live": ("redis.call('PERSIST', COUNTS)", ""),
}
HEALING = {
    "heal puts back what is there": ("if alive(LANE[lane], group, entry) then return 'ok' end\n-- Its", "-- Its"),
    "heal puts back what is ready": ("if alive(LANE[lane], group, entry) then return 'ok' end\n  enter", "enter"),
    "heal lines up who is in line": ("if redis.call('ZSCORE', WAITING, lane .. ' ' .. id) then return 'ok' end", ""),
    "heal looks for no heartbeat": (
        "if beat and tonumber(string.match(beat, '^%d+')) > now_ms() then return 'ok' end",
        "",
    ),
    "heal keeps the old entry": (
        "redis.call('HSET', JOB, 'entry', redis.call('XADD'",
        "redis.call('HSET', JOB, 'nothing', redis.call('XADD'",
    ),
    "a job that is gone is counted": ("forget(id, tenant)\n  return state and 'ended'", "return state and 'ended'"),
    "events of a job that is gone stay": (
        "if redis.call('PTTL', TOKENS) == -1 then redis.call('PEXPIRE', TOKENS, 3600000) end",
        "",
    ),
    "bytes of a job that is gone stay": (
        "redis.call('PEXPIRE', TOKENS, 3600000) end\n  when_empty()",
        "redis.call('PEXPIRE', TOKENS, 3600000) end",
    ),
    "tidy forgets who holds something": ("info.pending == 0 and", ""),
    "a lost group is not made again": (
        "redis.call('XGROUP', 'CREATE', lane, group, '0', 'MKSTREAM')",
        "redis.call('XGROUP', 'CREATE', lane, group, '$', 'MKSTREAM')",
    ),
}
GUARDS = OWNERS | STREAMS | REPEATS | BLAME | TIMES | TENANTS | HEALING
THEMES = {
    **dict.fromkeys(OWNERS, "owners"),
    **dict.fromkeys(STREAMS, "streams"),
    **dict.fromkeys(REPEATS, "repeats"),
    **dict.fromkeys(BLAME, "blame"),
    **dict.fromkeys(TIMES, "times"),
    **dict.fromkeys(TENANTS, "tenants"),
    **dict.fromkeys(HEALING, "healing"),
}
"""In schedules of which kind the absence of a check shows soonest."""

SHOWN_BY = {
    "no epoch check": 20,
    "no consumer check": 12,
    "no owner check in renew": 19,
    "no holder check in renew": 25,
    "no owner check in hand_back": 19,
    "no holder check in retry": 30,
    "a hand-back keeps the owner": 55,
    "a retry keeps the owner": 21,
    "no look at the entry in claim": 34,
    "no look at the lane in claim": 34,
    "no look at the state in claim": 24,
    "finish takes any events": 53,
    "stop takes any events": 43,
    "a pause is not looked at": 22,
    "a re-sent retry is another": 51,
    "a re-sent discard is another": 13,
    "a claim leaves it alone": 14,
    "a claim from a queue counts a strike": 42,
    "no look at the deadline in claim": 13,
    "no look at the time in promote": 17,
    "a retry keeps the entry": 20,
    "a retry leaves it on its lane": 20,
    "a retry keeps its turn": 20,
    "an ended job stays delayed": 15,
    "no limit of one tenant's own": 13,
    "who comes late overtakes the line": 128,
    "an end leaves no room for the next": 17,
}
"""Seeds that showed an absence where those before did not: tried first; a stale one costs a little time."""


def _breaking(old: str, new: str) -> Callable[[], Breaking]:
    return lambda: broken_by(old, new)


BREAKING = {name: _breaking(old, new) for name, (old, new) in GUARDS.items()}


def stands_in(guard: str) -> list[str]:
    """The scripts in which a guard's text is."""
    scripts = resources.files("producer") / "scripts"
    names = [file.name.removesuffix(".lua") for file in scripts.iterdir() if file.name.endswith(".lua")]
    return [name for name in names if name != "prelude" and GUARDS[guard][0] in script(name).text]
