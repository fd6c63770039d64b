"""Ending a job from outside."""

import secrets

import pytest

from producer import calls


def test_a_queued_job_is_cancelled_before_anyone_sees_it(desk):
    """It ends with an event, has a time to live, and its entry stays as a tombstone until a worker comes by."""
    job_id = desk.submit()
    reply = desk.run(calls.cancel(desk.keys, job_id, "no longer wanted"))
    assert (reply.met, reply.state) == ("queued", "cancelled")
    (ended,) = desk.events(job_id)
    assert (ended.reason, ended.error.message, ended.offset) == ("cancelled", "no longer wanted", 0)
    assert desk.status(job_id).state == "cancelled"
    assert desk.redis.ttl(desk.keys.tokens(job_id)) > 0
    assert desk.redis.ttl(desk.keys.job(job_id)) > 0
    assert desk.take("a").status == "gone"


def test_a_running_job_is_cancelled_under_its_worker(desk):
    """The published tokens stay, the end follows them, and the worker is refused at its next flush."""
    job_id = desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1, 2])
    assert desk.run(calls.cancel(desk.keys, job_id)).met == "running"
    assert desk.publish(claim, "a", 2, [3]).status == "fenced"
    assert desk.finish(claim, "a", 2).status == "fenced"
    assert desk.renew("a", claim) == [False]
    assert [event.kind for event in desk.events(job_id)] == ["started", "tokens", "ended"]
    assert desk.redis.xlen(desk.keys.lane("normal")) == desk.pending() == 0


@pytest.mark.parametrize("reason", ["stop", "failed"])
def test_an_ended_job_is_left_alone(desk, reason):
    """Cancelling what is over answers how it ended."""
    job_id = desk.submit()
    desk.finish(desk.take("a"), "a", 0, reason=reason)
    reply = desk.run(calls.cancel(desk.keys, job_id))
    assert (reply.met, reply.state) == ("ended", reason)
    assert len([event for event in desk.events(job_id) if event.kind == "ended"]) == 1


def test_an_unknown_job_cannot_be_cancelled(desk):
    """Nothing is written for an id that nobody submitted."""
    reply = desk.run(calls.cancel(desk.keys, f"0.default.{secrets.token_hex(8)}"))
    assert (reply.met, reply.state) == ("unknown", None)
    assert desk.redis.keys("*") == [desk.keys.control.encode()]


def test_a_resent_cancel_answers_what_the_first_met(desk):
    """A cancel sent twice says running both times and ends the job once."""
    job_id = desk.submit()
    desk.take("a")
    call = calls.cancel(desk.keys, job_id)
    assert desk.run(call).met == desk.run(call).met == "running"
    assert len([event for event in desk.events(job_id) if event.kind == "ended"]) == 1
    assert desk.run(calls.cancel(desk.keys, job_id)).met == "ended"


def test_a_job_on_its_way_to_a_worker_can_be_cancelled(desk):
    """Between pull and claim a cancel removes the entry, and the claim finds nothing to do."""
    job_id = desk.submit()
    (delivery,) = desk.pull("a")
    assert desk.run(calls.cancel(desk.keys, job_id)).met == "queued"
    assert desk.claim(delivery, "a").status == "gone"
    assert desk.redis.xlen(desk.keys.lane("normal")) == desk.pending() == 0
