"""Time, housekeeping and operators: what is due, late, waiting for its turn; pauses, limits, heartbeats."""

from __future__ import annotations

from producer import calls
from producer.calls import Delivery
from producer.errors import Undecodable
from tests.producer.fuzz.audit import check_end_of
from tests.producer.fuzz.taking import expire_now
from tests.producer.fuzz.world import READY, RUNNING, TENANTS, World


def grow_late(world: World, _: str) -> None:
    """A deadline passes: someone sees to it now, or later, or whoever claims the job, unless it ends before."""
    job = world.some_job(lambda job: job.is_live) if world.chance.random() < 0.3 else None
    if job is None:
        return
    job_id = job.job.id
    if not job.late:
        expire_now(world, job_id)
        world.redis.hset(world.keys.job(job_id), "deadline", 1)
        world.redis.zadd(world.keys.deadlines, {job_id: 1})
        job.late = True
    if job.late and world.chance.random() < 0.3:
        expire_now(world, job_id)


def fall_due(world: World, _: str) -> None:
    """The time of a delayed job comes."""
    if job := world.some_job(lambda job: job.is_live and job.delayed):
        come_due(world, job.job.id)


def come_due(world: World, job_id: str) -> None:
    world.redis.hset(world.keys.job(job_id), "due", 1)
    world.redis.zadd(world.keys.delayed, {job_id: 1}, xx=True)
    world.job(job_id).due = True


def promote(world: World, job_id: str) -> None:
    """Someone would have a job wait for a worker, due or not."""
    if job_id not in world.truth.jobs:
        job = world.some_job(lambda job: not job.forgotten)
        if job is None:
            return
        job_id = job.job.id
    job = world.job(job_id)
    answer = world.answer(calls.promote(world.keys, job_id))
    if job.harm == "hash" and job.ended is None:
        assert isinstance(answer, Undecodable)
        return
    expected = "not delayed" if job.is_known else "gone"
    if job.is_live and job.delayed:
        expected = "ok" if job.due else "not due"
    assert answer == expected, f"{job_id} was promoted: {answer} instead of {expected}"
    if answer == "ok":
        job.delayed = False


def sweep(world: World, _: str, most: int = 3) -> None:
    """A pass of housekeeping."""
    found = world.answer(calls.due(world.keys, most, world.sweep_cursor))
    world.sweep_cursor = found.cursor
    for job_id in found.delayed:
        assert world.job(job_id).due or not world.job(job_id).delayed, f"{job_id} is not due"
        promote(world, job_id)
    for job_id in found.late:
        job = world.job(job_id)
        assert job.late or not job.is_live, f"{job_id} is not late"
        expire_now(world, job_id)
        if job.harm == "hash":
            bury_broken(world, job_id)
    for job_id in found.some:
        heal(world, job_id)
    for tenant in found.tenants:
        world.answer(calls.refill(world.keys, tenant))
    world.truth.raised.clear()
    if world.chance.random() < 0.3:
        tidy(world, "")


def heal(world: World, job_id: str) -> None:
    """Look whether a job is where it will be found."""
    job = world.job(job_id)
    answer = world.answer(calls.heal(world.keys, job_id))
    if isinstance(answer, Undecodable):
        assert job.harm == "hash", answer
        bury_broken(world, job_id)
        return
    if not job.is_known:
        assert answer == "gone", f"{job_id} is not there, and healing it answered {answer}"
        return
    assert (answer in ("ok", "healed")) == job.is_live, f"{job_id}: {answer}"
    if answer == "healed":
        world.note(f"  {job_id} is healed")
        assert not job.delayed, f"{job_id} was delayed, and was put back among the delayed"
        assert job.holder is None, f"{job_id} was put back that {job.holder} has"
        beat = job.owner and world.redis.hget(world.keys.workers, job.owner[0])
        assert not beat, "a job was put back whose worker lives"
    if world.chance.random() < 0.1 and job.harm is None:
        sound = Delivery(job_id, job.job.lane, "0-0")
        assert not world.answer(calls.discard(world.keys, sound, "", only_if_wrong=True)), "a sound job was discarded"
    again = world.answer(calls.heal(world.keys, job_id))
    assert again == answer.replace("healed", "ok"), "put back twice"


def bury_broken(world: World, job_id: str) -> None:
    if world.job(job_id).ended is None:
        world.discard(Delivery(job_id, "normal", "0-0"), "its hash is none", only_if_wrong=True)


def tidy(world: World, _: str) -> None:
    """Consumers that hold nothing are forgotten; whatever is held stays held."""
    world.answer(calls.tidy(world.keys, gone_after_s=-1))


def beat(world: World, name: str) -> None:
    world.answer(calls.heartbeat(world.keys, name, "{}", 3_600_000))


def pause(world: World, _: str) -> None:
    if world.chance.random() < 0.2:
        world.set("paused", "1")


def resume(world: World, _: str) -> None:
    world.set("paused", None)


def limit(world: World, _: str) -> None:
    """An operator gives a tenant another limit, which may be none at all, or takes it away."""
    tenant = world.chance.choice(TENANTS)
    world.set(f"{tenant}:running", world.chance.choice(["0", "0", "1", "2", None, None]))
    world.truth.busy[tenant] = busy(world, tenant)
    world.truth.raised.add(tenant)


def busy(world: World, tenant: str) -> int:
    """A tenant's jobs on lanes and with workers."""
    about = world.keys.about(f"0.{tenant}.any-job-at-all")
    return int(world.redis.hlen(about[READY]) + world.redis.scard(about[RUNNING]))


def forget(world: World, job_id: str) -> None:
    """A job ended so long ago that its keys expire."""
    dead = world.some_job(lambda job: job.ended == "dead" and job.is_known)
    job = world.truth.jobs.get(job_id) or dead or world.some_job(lambda job: job.ended is not None and job.is_known)
    if job is not None and job.is_known:
        check_end_of(world, job.job.id)
        world.redis.delete(*world.keys.about(job.job.id)[:3])
        job.forgotten = True
