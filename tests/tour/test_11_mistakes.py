"""11. What can go wrong.

A mistake that the producer can see never reaches the queue: `submit` names the field, what came and what was expected.
What only the worker can see ends the job as `failed`, with the same kind of sentence; nobody else notices.
"""

import pytest
import redis

from producer import IdempotencyConflict, InvalidJob, Job, JobUnknown, Producer, RedisUnavailable, ResultExpired
from tests.conftest import leaked_keys


@pytest.mark.parametrize(
    ("field", "job"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {}),
        ("messages", {"prompt": "Hello", "messages": [{"role": "user", "content": "Hello"}]}),
        ("max_tokens", {"prompt": "Hello", "max_tokens": 0}),
        ("temperature", {"prompt": "Hello", "temperature": float("nan")}),
        ("top_p", {"prompt": "Hello", "top_p": 1.5}),
        ("temprature", {"prompt": "Hello", "temprature": 0.5}),
        ("max_tokens", {"prompt": "Hello", "max_tokens": "10"}),
    ],
)
def test_a_mistake_is_named_before_it_reaches_the_queue(queue, field, job):
    """`submit` raises InvalidJob with the name of the field."""
    with pytest.raises(InvalidJob) as found:
        queue.submit(**job)
    assert found.value.field == field


def test_what_only_the_worker_can_see_ends_the_job_and_nothing_else(queue):
    """A prompt and max_tokens that are more than the model takes: the job fails, its neighbour is answered."""
    too_long = queue.submit(prompt="Count from 3 to 5", max_tokens=5000)
    neighbour = queue.submit(prompt="Count from 3 to 5\n")

    failed = queue.result(too_long, timeout=60)
    assert failed.error.message.startswith("max_tokens: ")
    assert "this worker takes 1024" in failed.error.message
    assert queue.result(neighbour, timeout=60).text == "3 4 5"


def test_submitting_again_after_a_doubt_is_safe(queue):
    """A Job has its id from the start, so sending it twice is one job; other content under that id is refused."""
    job = Job(prompt="Count from 3 to 5\n")
    assert queue.submit(job) == queue.submit(job) == job.id
    assert queue.result(job, timeout=60).text == "3 4 5"
    with pytest.raises(IdempotencyConflict):
        queue.submit(Job(id=job.id, prompt="Count from 1 to 4"))


def test_results_are_kept_for_as_long_as_was_asked(queue, wait_until):
    """After `result_ttl` the tokens are gone, and one who asks is told that they were there."""
    job = queue.submit(prompt="Count from 3 to 5", result_ttl=1)
    wait_until(lambda: queue.status(job).ended, 60, "the job has ended")
    wait_until(lambda: queue.status(job).last_event is None, 30, "the result has expired")
    with pytest.raises(ResultExpired, match="longer result_ttl"):
        queue.result(job)


def test_nothing_stays_in_redis_for_ever(queue, url):
    """Once its jobs have ended, every key has a time to live but those of the queue itself: its lanes and workers."""
    queue.result(queue.submit(prompt="Count from 3 to 5"), timeout=60)
    queue.cancel(queue.submit(prompt="Count from 3 to 5"))
    with redis.Redis.from_url(url) as connection:
        ours = [key for key in leaked_keys(connection) if key.startswith("{slip:default:")]
        assert ours == []


def test_a_wrong_id_is_unknown_and_a_wrong_address_unavailable(queue):
    """Each error says which of the two it is, and what to do."""
    with pytest.raises(JobUnknown):
        next(queue.stream("0.default.0123456789abcdef"))
    with Producer("redis://127.0.0.1:1/0") as nowhere, pytest.raises(RedisUnavailable, match="start it"):
        nowhere.submit(prompt="Hello")
