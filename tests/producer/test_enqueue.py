"""Putting jobs on a lane."""

import pytest

from producer import calls
from producer.errors import IdempotencyConflict, QueueFull
from producer.protocol import Job


def test_a_job_waits_on_its_lane(desk):
    """An enqueued job is queued, unowned and the lane's one waiting entry."""
    job_id = desk.submit(lane="high")
    status = desk.status(job_id)
    assert (status.state, status.lane, status.deliveries, status.offset, status.consumer) == (
        "queued",
        "high",
        0,
        0,
        None,
    )
    assert desk.run(calls.depth(desk.keys))["high"] == calls.LaneDepth(waiting=1, running=0)


def test_a_resent_job_is_one_job(desk):
    """Enqueueing the same Job again answers that it is known and adds nothing."""
    job = Job(prompt="hello")
    assert desk.run(calls.enqueue(desk.keys, job)) == calls.Enqueued(job.id, duplicate=False)
    assert desk.run(calls.enqueue(desk.keys, job)) == calls.Enqueued(job.id, duplicate=True)
    assert desk.redis.xlen(desk.keys.lane("normal")) == 1


def test_a_resent_job_stays_one_job_after_its_end(desk):
    """The hash of an ended job still recognises a late re-send."""
    job = Job(prompt="hello")
    desk.run(calls.enqueue(desk.keys, job))
    desk.finish(desk.take("a"), "a", 0)
    assert desk.run(calls.enqueue(desk.keys, job)).duplicate
    assert desk.redis.xlen(desk.keys.lane("normal")) == 0


def test_the_same_content_under_the_same_id_is_one_job(desk):
    """A client that made its job anew after a crash, under its own id, is told that it is known."""
    for duplicate in (False, True):
        job = Job(id="0.default.my-own-id", prompt="hello", sampling={"temperature": 0})
        assert desk.run(calls.enqueue(desk.keys, job)).duplicate is duplicate


def test_an_id_names_one_content_only(desk):
    """A second job under a used id is refused, and the first stays as it was."""
    job_id = desk.submit(prompt="hello")
    with pytest.raises(IdempotencyConflict, match=job_id):
        desk.run(calls.enqueue(desk.keys, Job(id=job_id, prompt="something else")))
    assert desk.redis.xlen(desk.keys.lane("normal")) == 1


def test_a_full_queue_refuses_with_figures(desk):
    """At max_depth, over all lanes together, enqueue writes nothing and says how full the queue is."""
    desk.redis.hset(desk.keys.control, "max_depth", 2)
    desk.submit(lane="high")
    desk.submit(lane="low")
    with pytest.raises(QueueFull) as caught:
        desk.submit(id="0.default.refused-job")
    assert (caught.value.depth, caught.value.limit) == (2, 2)
    assert caught.value.retry_after > 0
    assert desk.run(calls.status(desk.keys, "0.default.refused-job")) is None


def test_a_known_job_is_known_also_by_a_full_queue(desk):
    """A re-send of an accepted job succeeds although there is no room any more."""
    desk.redis.hset(desk.keys.control, "max_depth", 1)
    job = Job(prompt="hello")
    desk.run(calls.enqueue(desk.keys, job))
    assert desk.run(calls.enqueue(desk.keys, job)).duplicate


def test_jobs_of_one_pipeline_are_judged_one_by_one(desk):
    """run_many returns an error of ours in the place of its call and runs the others."""
    desk.redis.hset(desk.keys.control, "max_depth", 2)
    jobs = [Job(prompt=str(number)) for number in range(3)]
    first, second, third = calls.run_many(desk.redis, [calls.enqueue(desk.keys, job) for job in jobs])
    assert (first.job_id, second.job_id) == (jobs[0].id, jobs[1].id)
    assert isinstance(third, QueueFull)
