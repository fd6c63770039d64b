"""6. A worker is full.

A worker takes no more than it has room for; the rest waits in Redis, where every other worker sees it. As soon as a row
is free the next job slips in, while its neighbours decode on.
"""

import pytest

from producer import Producer


@pytest.fixture(scope="module")
def small_worker(start_worker):
    """A worker with two rows on the queue `narrow`."""
    return start_worker("--queue", "narrow", "--max-rows", "2").wait_ready()


@pytest.fixture
def narrow(url, small_worker):
    with Producer(url, queue="narrow") as producer:
        yield producer


def most_at_once(statuses):
    """How many of the jobs were with a worker at one time, at most."""
    began = [(status.claimed_at, 1) for status in statuses]
    ended = [(status.ended_at, -1) for status in statuses]
    running, most = 0, 0
    for _, change in sorted(began + ended):
        running += change
        most = max(most, running)
    return most


def test_the_queue_waits_while_a_worker_is_full(narrow, small_worker):
    """Of six jobs two run; four are queued, and get their turn."""
    with small_worker.slow():
        jobs = [narrow.submit(prompt=f"Count from {n} to 99", max_tokens=300, ignore_eos=True) for n in range(6)]
        first = narrow.stream(jobs[0])
        while next(first).kind != "tokens":
            pass
        assert [narrow.status(job).state for job in jobs[2:]] == ["queued"] * 4

    assert [narrow.result(job, timeout=120).usage.completion_tokens for job in jobs] == [300] * 6
    assert most_at_once([narrow.status(job) for job in jobs]) == 2


def test_a_short_job_does_not_wait_for_a_long_neighbour(narrow, small_worker):
    """Beside one long job six short ones come and go in the other row: that is continuous batching."""
    with small_worker.slow():
        long = narrow.submit(prompt="Count from 1 to 100", max_tokens=900, ignore_eos=True)
        short = [narrow.submit(prompt=f"Count from {n} to {n + 3}\n") for n in range(10, 16)]

        answers = [narrow.result(job, timeout=120).text for job in short]

        assert answers == [f"{n} {n + 1} {n + 2} {n + 3}" for n in range(10, 16)]
        assert narrow.status(long).state == "running"
    assert narrow.result(long, timeout=120).usage.completion_tokens == 900


def test_a_job_cancelled_in_the_queue_never_takes_a_row(narrow, small_worker):
    """The worker passes it over: no start event, no token, and the others are answered."""
    with small_worker.slow():
        jobs = [narrow.submit(prompt="Count from 1 to 100", max_tokens=300, ignore_eos=True) for _ in range(2)]
        waiting, last = narrow.submit(prompt="Count from 1 to 5"), narrow.submit(prompt="Count from 1 to 5\n")
        assert narrow.cancel(waiting).met == "queued"

    assert narrow.result(last, timeout=120).text == "1 2 3 4 5"
    assert [event.kind for event in narrow.stream(waiting)] == ["ended"]
    assert [narrow.result(job, timeout=120).finish_reason for job in jobs] == ["length", "length"]
