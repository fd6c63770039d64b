"""What keeps a queue from growing over its head, and a repeat from being a second job."""

import pytest

from producer import calls
from producer.errors import IdempotencyConflict, InvalidJob, QueueFull
from producer.keys import idempotent_job_id
from producer.protocol import Job


def test_bytes_are_counted_from_enqueue_to_end(desk):
    """A payload over what is left is refused with the figures; an end gives its bytes back."""
    desk.redis.hset(desk.keys.control, "max_bytes", 3000)
    desk.submit(prompt="x" * 2000)
    with pytest.raises(QueueFull) as refused:
        desk.submit(prompt="x" * 2000)
    assert (refused.value.what, refused.value.limit) == ("bytes", 3000)
    assert refused.value.depth > 4000
    desk.finish(desk.take("a"), "a", 0)
    desk.submit(prompt="x" * 2000)


def test_a_redis_that_is_nearly_full_takes_no_more_jobs(real_desk):
    """Past 80 % of maxmemory nothing new comes in, so that what runs can end."""
    used = real_desk.redis.info("memory")["used_memory"]
    real_desk.submit()
    claim = real_desk.take("a")
    real_desk.redis.hdel(real_desk.keys.counts, "/memory_at")
    real_desk.redis.config_set("maxmemory", int(used / 0.85))
    try:
        with pytest.raises(QueueFull, match="% of Redis' memory, limit 80"):
            real_desk.submit()
        assert real_desk.finish(claim, "a", 0).status == "ok"
    finally:
        real_desk.redis.config_set("maxmemory", 0)


def test_the_hint_when_to_come_again_follows_the_drain(desk):
    """A queue that ends many jobs a second asks for a shorter wait than one that ends none."""
    desk.redis.hset(desk.keys.control, "max_depth", 100)
    calls.run_many(desk.redis, [calls.enqueue(desk.keys, Job(prompt="x")) for _ in range(100)])

    def hint():
        with pytest.raises(QueueFull) as refused:
            desk.submit()
        return refused.value.retry_after

    assert hint() == 1.0, "nobody knows yet"
    desk.redis.hset(desk.keys.counts, mapping={"/met_at": 1, "/ended": 10**12})
    assert 0.05 <= hint() < 1.0


def test_a_paused_queue_gives_nothing_out(desk):
    """Jobs are accepted, none is pulled; lifting the pause is enough."""
    desk.redis.hset(desk.keys.control, "paused", 1)
    desk.submit()
    assert desk.pull("a") == []
    desk.redis.hdel(desk.keys.control, "paused")
    assert desk.take("a").status == "ok"


def test_the_same_key_is_the_same_job(desk):
    """Another submit under a tenant's idempotency key answers the first job, also after its end, whatever its times."""
    first = desk.submit(idempotency_key="order 7", deadline=8e9)
    again = desk.run(calls.enqueue(desk.keys, Job(prompt="hello", idempotency_key="order 7")))
    assert again == calls.Enqueued(first, duplicate=True)
    desk.finish(desk.take("a"), "a", 0)
    assert desk.run(calls.enqueue(desk.keys, Job(prompt="hello", idempotency_key="order 7"))).duplicate
    assert desk.submit(idempotency_key="order 7", tenant="other") != first


def test_another_content_under_a_key_is_a_conflict(desk):
    """The first job is untouched."""
    first = desk.submit(idempotency_key="order 7")
    with pytest.raises(IdempotencyConflict):
        desk.submit(idempotency_key="order 7", prompt="something else")
    assert desk.status(first).state == "queued"


def test_a_key_is_remembered_for_as_long_as_was_asked(desk):
    """The ended job's hash outlives its result by the key's time to live."""
    job_id = desk.submit(idempotency_key="k", result_ttl=10.0, idempotency_ttl=7 * 86400.0)
    desk.finish(desk.take("a"), "a", 0)
    assert desk.redis.ttl(desk.keys.job(job_id)) > 7 * 86400


def test_a_key_and_an_id_of_ones_own_exclude_each_other():
    """The id follows from the key, in any number of partitions."""
    with pytest.raises(InvalidJob, match="id: expected none beside an idempotency_key"):
        Job(prompt="x", idempotency_key="k", id="0.default.my-own-id")
    assert Job(prompt="x", idempotency_key="k").id == idempotent_job_id("k")
    assert Job(prompt="x", idempotency_key="k", id=idempotent_job_id("k", 16)).partition == int(
        idempotent_job_id("k", 16).partition(".")[0]
    )
