"""4. Never mind.

`cancel` ends a job wherever it is. Whoever waits for it is told, and the tokens it had stay readable.
"""

import pytest

from producer import JobCancelled, JobUnknown, Producer


def test_a_running_job_is_cancelled_in_mid_sentence(queue, worker):
    """Its reader gets a last event that says so, and its row is free for the next job."""
    with worker.slow():  # a fast machine could be at the end before we have said a word
        job = queue.submit(prompt="Count from 1 to 100", max_tokens=900, ignore_eos=True)
        events = queue.stream(job)
        while next(events).kind != "tokens":
            pass

        assert queue.cancel(job).met == "running"

    *_, last = events
    assert (last.kind, last.reason) == ("ended", "cancelled")
    assert last.offset < 900
    assert queue.status(job).state == "cancelled"


def test_the_tokens_a_cancelled_job_had_stay_readable(queue, worker):
    """What was published is published: the result is those tokens and the word `cancelled`."""
    with worker.slow():
        job = queue.submit(prompt="Count from 1 to 100\n", max_tokens=900, ignore_eos=True)
        events = queue.stream(job)
        while next(events).kind != "tokens":
            pass
        queue.cancel(job)

    result = queue.result(job, timeout=60)
    assert result.finish_reason == "cancelled"
    assert result.text.startswith("1")
    with pytest.raises(JobCancelled):
        result.raise_for_failure()


def test_a_queued_job_is_cancelled_before_anybody_takes_it(url):
    """Nobody serves this queue, so the job waits; cancelled, it is over at once and its readers are told."""
    with Producer(url, queue="nobody-serves-this") as queue:
        job = queue.submit(prompt="Count from 1 to 5")
        assert queue.status(job).state == "queued"

        assert queue.cancel(job, "changed my mind").met == "queued"

        (ended,) = queue.stream(job)
        assert ended.reason == "cancelled"
        assert ended.error.message == "changed my mind"


def test_the_worker_goes_on_after_a_cancel(queue):
    """A cancelled job takes nothing with it: the next one is answered."""
    queue.cancel(queue.submit(prompt="Count from 1 to 100", max_tokens=900, ignore_eos=True))
    assert queue.result(queue.submit(prompt="Count from 7 to 9\n"), timeout=60).text == "7 8 9"


def test_cancelling_too_late_changes_nothing(queue):
    """A job that has ended stays as it ended."""
    job = queue.submit(prompt="Count from 7 to 9\n")
    queue.result(job, timeout=60)
    assert queue.cancel(job).met == "ended"
    assert queue.result(job).text == "7 8 9"


def test_cancelling_what_never_was_is_an_error(queue):
    """A wrong id is said to be wrong."""
    with pytest.raises(JobUnknown):
        queue.cancel("0.default.0123456789abcdef")
