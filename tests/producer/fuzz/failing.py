"""What dies: workers, and a Redis whose replica takes over without the latest."""

from __future__ import annotations

import copy

from tests.producer.fuzz.truth import JobTruth
from tests.producer.fuzz.world import World


def kill(world: World, name: str) -> None:
    """kill -9: the worker's memory is gone, what is pending at it is not."""
    worker = world.workers[name]
    for job_id in list(worker.works):
        world.drop(name, job_id)
    worker.unclaimed.clear()
    worker.reply_lost, worker.alone = False, None


def back_up(world: World, name: str) -> None:
    """A replica gets this far."""
    if name == "now" or world.chance.random() < 0.3:
        names = sorted(world.redis.keys("*"))
        with world.redis.pipeline(transaction=False) as pipeline:
            for key in names:
                pipeline.dump(key)
                pipeline.pttl(key)
            values = pipeline.execute()
        held = {key: (values[2 * at], max(0, values[2 * at + 1])) for at, key in enumerate(names)}
        world.backup = held, copy.deepcopy(world.truth)


def fail_over(world: World, name: str) -> None:
    """The replica takes over: what came since is lost, but not to the workers and readers."""
    if world.backup is None or (name != "now" and world.chance.random() < 0.5):
        return
    held, truth = world.backup
    lost = {job_id: job for job_id, job in world.truth.jobs.items() if job_id not in truth.jobs}
    world.truth = copy.deepcopy(truth)
    world.truth.jobs |= {job_id: JobTruth(job.job, job.is_poison, harm="vanished") for job_id, job in lost.items()}
    world.failed_over = True
    world.redis.flushdb()
    with world.redis.pipeline(transaction=False) as pipeline:
        for key, (value, ttl) in held.items():
            pipeline.restore(key, ttl, value)
        pipeline.execute()


def silence(world: World, name: str) -> None:
    """A worker's heartbeat runs out."""
    world.redis.hdel(world.keys.workers, name)
