"""5. More workers.

To scale, start another worker. There is nothing to register and nothing to balance: each pulls as much as it has room
for, whenever it has room.
"""

from signal import SIGTERM

import pytest

from producer import Producer


@pytest.fixture(scope="module")
def anna_and_ben(start_worker):
    """Two workers with two rows each on the queue `shared`."""
    both = [start_worker("--queue", "shared", "--name", name, "--max-rows", "2") for name in ("anna", "ben")]
    return [worker.wait_ready() for worker in both]


@pytest.fixture
def shared(url, anna_and_ben):
    with Producer(url, queue="shared") as producer:
        yield producer


def workers_of(queue, job):
    """The names of all workers that took a job, in order."""
    return [event.worker for event in queue.stream(job) if event.kind == "started"]


def test_two_workers_share_a_queue(shared, anna_and_ben, wait_until):
    """Each job is answered once, by one of them, and both have their part."""
    anna, ben = anna_and_ben
    with anna.slow(), ben.slow():  # else a fast one could have answered all before the other has woken
        jobs = {shared.submit(prompt=f"Count from {n} to {n + 40}\n"): n for n in range(10, 26)}
        wait_until(lambda: [shared.status(job).state for job in jobs].count("running") == 4, 60, "all rows are taken")

    for job, n in jobs.items():
        assert shared.result(job, timeout=120).text == " ".join(map(str, range(n, n + 41)))

    took = [workers_of(shared, job) for job in jobs]
    assert {len(names) for names in took} == {1}
    assert {names[0] for names in took} == {anna.name, ben.name}


def test_a_worker_leaves_and_loses_nothing(shared, anna_and_ben):
    """Told to stop, a worker finishes what it has and takes no more; the other one answers the rest."""
    anna, ben = anna_and_ben
    with anna.slow(), ben.slow():
        jobs = [shared.submit(prompt=f"Count from {n} to {n + 40}\n") for n in range(10, 26)]
        anna.signal(SIGTERM)
        anna.wait_for("draining")
    assert anna.exit_code() == 0

    for n, job in enumerate(jobs, start=10):
        assert shared.result(job, timeout=120).text == " ".join(map(str, range(n, n + 41)))
    assert workers_of(shared, jobs[-1]) == [ben.name]
