"""What must be so: at any moment, by the jobs' hashes against every set and count; and of each job that has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from producer import calls, wire
from tests.producer.fuzz.reading import read_on
from tests.producer.fuzz.truth import right
from tests.producer.fuzz.world import READY, RUNNING, TENANTS, WAITING, World


def check(world: World, _: str = "") -> None:
    """Sets and counts agree with the jobs; no tenant has more than it may."""
    truth, live = world.truth, world.truth.live
    unsure = {job_id for job_id, job in truth.jobs.items() if not job.is_known}
    deadlines, delayed, counted, counts_ttl, letters, *rest = _look_at_all(world, live)
    of_tenants, hashes = rest[: 3 * len(TENANTS)], rest[3 * len(TENANTS) :]
    claimed = {job_id for job_id, entry in zip(live, hashes[::3], strict=True) if entry}

    def same(what: str, found: set[str], expected: set[str]) -> None:
        assert found - unsure == expected - unsure, f"{what}: {sorted(found)} instead of {sorted(expected)}"

    same("deadlines", _names(deadlines), set(live))
    same("delayed", _names(delayed), {job_id for job_id in live if truth.jobs[job_id].delayed})
    waiting_of = Counter[str]()
    for at, tenant in enumerate(TENANTS):
        line = [name.decode().split(" ") for name in of_tenants[3 * at]]
        waiting, ready, running = {job_id for _, job_id in line}, *map(_names, of_tenants[3 * at + 1 : 3 * at + 3])
        jobs = {each for each in live if truth.jobs[each].job.tenant == tenant and not truth.jobs[each].delayed}
        same(f"{tenant}'s waiting and ready", waiting | ready, jobs - claimed)
        same(f"{tenant}'s running", running, jobs & claimed)
        assert not (waiting & ready) - unsure, "a job stands in its line and on its lane"
        waiting_of.update(tenant if what is None else f"/{what}" for lane, _ in line for what in (None, lane))
        _check_limits(world, tenant, len(ready), len(ready) + len(running), has_line=bool(line))
    counts = {name.decode(): value for name, value in counted.items()}
    for name in (*TENANTS, "/high", "/normal", "/low"):
        found = int(counts.get(name, 0))
        assert found == waiting_of[name], f"{name} counts {found}, and {waiting_of[name]} wait"
    assert all(ttl < 0 for ttl in hashes[2::3]), "events of a live job are to expire"
    assert counts_ttl == -1 or not live, "the counts of live jobs are to expire"
    _check_bytes(world, int(counts.get("/bytes", 0)), sum(hashes[1::3]))
    dead = sorted((letter.job_id, letter.why) for letter in calls.read_letters(letters))
    assert dead == sorted(truth.letters), f"dead letters: {dead} instead of {sorted(truth.letters)}"


def _names(found: Iterable[bytes]) -> set[str]:
    return {name.decode() for name in found}


def _look_at_all(world: World, live: list[str]) -> list[Any]:
    """Everything there is to compare, in one round trip: of the partition, of each tenant, and of each live job the
    entry that it was claimed by (empty: none), the length of its payload, and its events' time to live."""
    keys = world.keys
    with world.redis.pipeline(transaction=False) as pipeline:
        pipeline.zrange(keys.deadlines, 0, -1)
        pipeline.zrange(keys.delayed, 0, -1)
        pipeline.hgetall(keys.counts)
        pipeline.ttl(keys.counts)
        pipeline.xrange(keys.dead)
        for tenant in TENANTS:
            about = keys.about(f"0.{tenant}.any-job-at-all")
            pipeline.zrange(about[WAITING], 0, -1)
            pipeline.hkeys(about[READY])
            pipeline.smembers(about[RUNNING])
        for job_id in live:
            pipeline.hget(keys.job(job_id), "entry")
            pipeline.hstrlen(keys.job(job_id), "payload")
            pipeline.ttl(keys.tokens(job_id))
        found: list[Any] = pipeline.execute()
        return found


def _check_limits(world: World, tenant: str, ready: int, busy: int, *, has_line: bool) -> None:
    """A tenant has no more than it may on lanes and with workers; and no less, where more of its jobs wait."""
    window, limit = int(world.truth.control["tenant_window"]), world.truth.running_limit(tenant)
    assert ready <= window, f"{tenant} has {ready} jobs on the lanes, and may have {window}"
    if limit is not None:
        allowed = max(limit, min(world.truth.busy.get(tenant, 0), busy))
        world.truth.busy[tenant] = busy
        assert busy <= allowed, f"{tenant} has {busy} jobs on lanes and with workers, and may have {limit}"
    if has_line and tenant not in world.truth.raised:
        has_turn = ready < window and (limit is None or busy < limit)
        assert not has_turn, (
            f"{tenant}'s jobs wait in line, and have their turn: {ready} of {window}, {busy} of {limit}"
        )


def _check_bytes(world: World, found: int, expected: int) -> None:
    """What was counted for a hash that is gone can't be known: it stays until the queue is empty."""
    lost = any(job.harm or job.came_back or job.ended == "dead" for job in world.truth.jobs.values())
    assert found == expected or (lost and found >= expected), f"{found} bytes are counted, {expected} are there"


def check_end_of(world: World, job_id: str) -> None:
    """A job that has ended: one end, every token once, in order and right, for its reader as well."""
    job = world.job(job_id)
    assert job.ended is not None, f"{job_id} has not ended"
    read_on(world, job_id)
    assert world.readers[job_id].ended, f"{job_id} has no end for its reader"
    events = [wire.decode_event(*entry) for entry in world.redis.xrange(world.keys.tokens(job_id))]
    assert [event.kind for event in events].count("ended") == 1, f"{job_id} has not one end"
    assert events[-1].kind == "ended", f"something follows the end of {job_id}"
    assert events[-1].reason == job.ended, f"{job_id} ended as {events[-1].reason}, not as {job.ended}"
    whole = [token_id for event in events if event.kind == "tokens" for token_id in event.token_ids]
    stop = job.length if job.ended == "stop" else len(whole)
    assert whole == right(job_id, 0, stop), f"{job_id}: a gap or a repeat"
    seen = world.read.get(job_id, [])
    assert seen == right(job_id, 0, len(seen)), f"the reader of {job_id} saw a gap or a repeat"
    lost_some = world.failed_over or job_id in world.torn
    told_another_end = lost_some and world.told[job_id] != events[-1].reason
    assert len(seen) == len(whole) or told_another_end or (lost_some and len(seen) > len(whole))
    result = world.redis.get(world.keys.result(job_id))
    assert (result is not None) == (job.ended_by is not None), f"{job_id} has a result it should not have, or none"
    if result is not None:
        assert list(wire.decode_result(result, job_id).token_ids) == right(job_id, 0, stop), f"{job_id}: another result"


def check_all(world: World) -> None:
    """At the end: every job ended once, and nothing is left behind."""
    check(world)
    for job_id, job in world.truth.jobs.items():
        if job.is_known:
            check_end_of(world, job_id)
    for depth in world.answer(calls.depth(world.keys)).values():
        assert (depth.waiting, depth.running) == (0, 0), "an entry is left, or is pending without being there"
    lasting = {key.encode() for key in (*world.keys.lanes, world.keys.control, world.keys.workers)}
    leaked = [key for key in sorted(world.redis.keys("*")) if world.redis.ttl(key) == -1 and key not in lasting]
    assert not leaked, f"keys that stay for ever: {leaked}"
    for tenant in TENANTS:
        about = world.keys.about(f"0.{tenant}.any-job-at-all")
        left = [name for name in about[WAITING : RUNNING + 1] if world.redis.exists(name)]
        assert not left, f"{left} are left of {tenant}"
    assert b"/bytes" not in world.redis.hkeys(world.keys.counts), "bytes of jobs are counted, and there are none"
