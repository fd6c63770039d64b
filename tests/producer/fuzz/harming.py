"""What people and machines do to keys by hand: lanes and groups deleted, entries copied, hashes gone or overwritten."""

from __future__ import annotations

from contextlib import suppress

from redis.exceptions import ResponseError

from tests.producer.fuzz import submitting
from tests.producer.fuzz.world import READY, World


def lose_group(world: World, _: str) -> None:
    _lose(world, whole_lane=False)


def lose_lane(world: World, _: str) -> None:
    _lose(world, whole_lane=True)


def _lose(world: World, *, whole_lane: bool) -> None:
    """A lane, or its group: nobody has what was in it."""
    lane = world.chance.choice(world.keys.lanes)
    if not world.redis.exists(lane):
        return
    if whole_lane:
        world.redis.delete(lane)
    else:
        world.redis.xgroup_destroy(lane, "workers")
    for job in world.truth.jobs.values():
        if job.job.lane == lane.rpartition(":")[2]:
            job.holder = None


def litter(world: World, _: str) -> None:
    """Someone puts an entry on a lane by hand: of a job, of nothing, or a copy of an entry under its own id."""
    job = world.some_job(lambda _: True)
    if job is None or world.chance.random() > 0.3:
        return
    lane, job_id = world.chance.choice(world.keys.lanes), job.job.id
    if job.is_known and world.chance.random() < 0.5:
        entry = world.redis.hget(world.keys.job(job_id), "entry") or world.redis.hget(
            world.keys.about(job_id)[READY], job_id
        )
        with suppress(ResponseError):  # the lane is past that id
            world.redis.xadd(lane, {"j": job_id}, id=entry or "*")
    else:
        world.redis.xadd(lane, world.chance.choice([{"j": job_id}, {"j": "no id"}, {"x": "y"}]))


def vanish(world: World, _: str) -> None:
    """A live job's hash is deleted; now and then its producer sends it again."""
    if job := world.some_job(lambda job: job.is_live and job.harm is None):
        world.redis.delete(world.keys.job(job.job.id))
        job.harm, job.owner, job.holder, job.delayed = "vanished", None, None, False
        if world.chance.random() < 0.5:
            submitting.enqueue(world, job.job, is_poison=job.is_poison)


def overwrite(world: World, _: str) -> None:
    """A live job's hash or events become a string."""
    owned = world.some_job(lambda job: job.owner is not None and job.harm is None)
    if job := owned or world.some_job(lambda job: job.is_live and job.harm is None):
        job.harm = world.chance.choice(["hash", "events", "events"])
        keys = {"hash": world.keys.job(job.job.id), "events": world.keys.tokens(job.job.id)}
        world.redis.set(keys[job.harm], "what is this?")
        world.torn.add(job.job.id)
        if job.harm == "hash":
            job.owner, job.delayed = None, False


def lose_events(world: World, _: str) -> None:
    """A live job's events are deleted under its worker."""
    if job := world.some_job(lambda job: job.is_live and job.harm is None):
        world.redis.delete(world.keys.tokens(job.job.id))
        world.torn.add(job.job.id)
