"""12. In time, or not at all.

A job may say when it may run first and by when it must have ended. A job that is late ends as `expired`: never as a
short answer that looks like a whole one.
"""

import time

import pytest

from producer import InvalidJob, JobExpired


def test_a_running_job_ends_at_its_deadline(queue, worker):
    """It had begun; its tokens stay readable, and its end says why there are no more."""
    deadline = time.time() + 3.0
    with worker.slow():  # so that the job is late on any machine
        job = queue.submit(prompt="Count from 1 to 100", max_tokens=950, ignore_eos=True, deadline=deadline)
        first_tokens, *_, ended = (event for event in queue.stream(job) if event.kind != "started")
    assert (ended.reason, ended.error.code) == ("expired", "deadline")
    assert queue.result(job).text.startswith(first_tokens.text)
    with pytest.raises(JobExpired):
        queue.result(job).raise_for_failure()


def test_a_scheduled_job_waits_for_its_time(queue):
    """Not before, and soon after."""
    when = time.time() + 2.0
    job = queue.submit(prompt="Count from 3 to 5", not_before=when)
    assert queue.status(job).state == "delayed"
    assert queue.result(job, timeout=60).text.split() == ["3", "4", "5"]
    assert queue.status(job).claimed_at >= when


def test_a_deadline_in_the_past_is_a_mistake(queue):
    """Submit says so at once, with what Redis' clock says."""
    with pytest.raises(InvalidJob, match="deadline: expected a time to come"):
        queue.submit(prompt="Count from 3 to 5", deadline=time.time() - 60)
