"""When jobs may run and by when they must have ended. Redis' clock decides."""

import time

import pytest

from producer import calls
from producer.errors import InvalidJob
from producer.protocol import Job


def later(seconds):
    return time.time() + seconds


def set_deadline(desk, job_id, seconds):
    """As if the job had been given a deadline `seconds` from now."""
    at = round(later(seconds) * 1000)
    desk.redis.hset(desk.keys.job(job_id), "deadline", at)
    desk.redis.zadd(desk.keys.deadlines, {job_id: at})


def test_a_job_whose_time_is_over_is_refused_when_it_comes(desk):
    """A deadline that has passed is named in the refusal, with what Redis' clock says."""
    with pytest.raises(InvalidJob, match="deadline: expected a time to come"):
        desk.submit(deadline=later(-5))
    assert desk.redis.zcard(desk.keys.deadlines) == 0


def test_a_deadline_lies_after_the_start(desk):
    """A job that could only run after its deadline is no job."""
    with pytest.raises(InvalidJob, match="deadline"):
        Job(prompt="x", not_before=2000.0, deadline=1000.0)


def test_every_job_has_a_deadline(desk):
    """One that names none, or a later one than the queue allows, ends a day after it may run, or sooner."""
    day = desk.status(desk.submit(deadline=later(10**6)))
    assert day.deadline == pytest.approx(day.queued_at + 86_400, abs=0.01)
    desk.redis.hset(desk.keys.control, "max_age", 5000)
    short = desk.status(desk.submit())
    assert short.deadline == pytest.approx(short.queued_at + 5, abs=0.01)


@pytest.mark.parametrize("where", ["queued", "running", "delayed"])
def test_a_late_job_ends_as_expired(desk, where):
    """Wherever it is, with the tokens it has; nobody owns it any more."""
    job_id = desk.submit(not_before=later(100) if where == "delayed" else None)
    claim = desk.take("a") if where == "running" else None
    if claim is not None:
        desk.publish(claim, "a", 0, [1, 2])
    set_deadline(desk, job_id, -1)
    assert desk.run(calls.due(desk.keys, 10, 0)).late == [job_id]
    assert desk.run(calls.expire(desk.keys, job_id)) == calls.CancelReply(where, "expired")
    ended = desk.events(job_id)[-1]
    assert (ended.kind, ended.reason, ended.error.code) == ("ended", "expired", "deadline")
    assert desk.token_ids(job_id) == ([1, 2] if claim else [])
    if claim is not None:
        assert desk.publish(claim, "a", 2, [3]).status == "fenced"
    assert desk.run(calls.due(desk.keys, 10, 0)) == calls.Due([], [], [], 0, [])


def test_a_job_with_time_left_does_not_expire(desk):
    """Whoever asks too early changes nothing."""
    job_id = desk.submit(deadline=later(60))
    assert desk.run(calls.expire(desk.keys, job_id)).met == "early"
    assert desk.status(job_id).state == "queued"


def test_a_late_job_is_not_claimed(desk):
    """Its time may have run out on the lane, before housekeeping came by."""
    job_id = desk.submit()
    (delivery,) = desk.pull("a")
    set_deadline(desk, job_id, -1)
    assert desk.claim(delivery, "a").status == "late"
    assert desk.status(job_id).deliveries == 0


def test_a_scheduled_job_waits_for_its_time(desk):
    """Nobody is given it before; then housekeeping puts it on its lane."""
    job_id = desk.submit(not_before=later(100), lane="high")
    assert (desk.pull("a"), desk.status(job_id).state) == ([], "delayed")
    assert desk.run(calls.promote(desk.keys, job_id)) == "not due"
    desk.redis.hset(desk.keys.job(job_id), "due", 1)
    desk.redis.zadd(desk.keys.delayed, {job_id: 1})
    assert desk.run(calls.due(desk.keys, 10, 0)).delayed == [job_id]
    assert desk.run(calls.promote(desk.keys, job_id)) == "ok"
    assert desk.run(calls.promote(desk.keys, job_id)) == "not delayed"
    assert desk.take("a").status == "ok"
