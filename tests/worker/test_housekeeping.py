"""What a worker does each second for the whole queue."""

import time

import pytest

from producer import Job, calls
from producer.keys import Keys
from worker.housekeeping import Housekeeping

KEYS = Keys("test")


@pytest.fixture
def house(redis_client):
    return Housekeeping(redis_client, KEYS)


def submit(redis, **fields):
    job = Job(prompt="x", **fields)
    calls.run(redis, calls.enqueue(KEYS, job))
    return job.id


def test_a_sweep_promotes_expires_and_heals(house, redis_client):
    """What is due goes to its lane, what is late ends, what is nowhere is put back; then there is nothing to do."""
    due = submit(redis_client, not_before=time.time() + 100)
    redis_client.hset(KEYS.job(due), "due", 1)
    redis_client.zadd(KEYS.delayed, {due: 1})
    late = submit(redis_client, lane="high")
    redis_client.hset(KEYS.job(late), "deadline", 1)
    redis_client.zadd(KEYS.deadlines, {late: 1})
    submit(redis_client, lane="low")
    redis_client.delete(KEYS.lane("low"))
    house.sweep()
    assert house.counts == {"promoted": 1, "expired": 1, "healed": 1, "discarded": 0}
    house.sweep()
    assert house.counts == {"promoted": 1, "expired": 1, "healed": 1, "discarded": 0}
    depth = calls.run(redis_client, calls.depth(KEYS))
    assert (depth["normal"].waiting, depth["low"].waiting) == (1, 1)


def test_a_job_overwritten_by_someone_else_stops_nobody(house, redis_client):
    """Its keys hold a string: it becomes a dead letter, and the jobs beside it are looked after all the same."""
    broken, late = submit(redis_client), submit(redis_client)
    redis_client.set(KEYS.job(broken), "not a hash")
    redis_client.hset(KEYS.job(late), "deadline", 1)
    redis_client.zadd(KEYS.deadlines, {late: 1})
    house.sweep()
    assert (house.counts["expired"], house.counts["discarded"]) == (1, 1)
    (letter,) = calls.read_letters(redis_client.xrange(KEYS.dead))
    assert letter.job_id == broken
    assert not redis_client.exists(KEYS.deadlines)


def test_a_lane_overwritten_by_someone_else_costs_no_job(house, redis_client):
    """The jobs' own keys are sound, so none is given up: they wait until the lane is mended."""
    job_id = submit(redis_client)
    redis_client.set(KEYS.lane("normal"), "not a stream")
    house.sweep()
    assert house.counts["discarded"] == 0
    redis_client.delete(KEYS.lane("normal"))
    house.sweep()
    assert house.counts["healed"] == 1
    assert [d.job_id for d in calls.run(redis_client, calls.pull(KEYS, "a", 5)).deliveries] == [job_id]


def test_a_long_queue_is_healed_bit_by_bit(house, redis_client):
    """A hundred live jobs a sweep, going round, so that a sweep takes a bounded time."""
    calls.run_many(redis_client, [calls.enqueue(KEYS, Job(prompt="x", tenant=f"t{n}")) for n in range(250)])
    redis_client.delete(KEYS.lane("normal"))
    healed = []
    for _ in range(3):
        house.sweep()
        healed.append(house.counts["healed"])
    assert healed == [100, 200, 250]
