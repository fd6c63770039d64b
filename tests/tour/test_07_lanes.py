"""7. What matters more goes first.

A queue has three lanes: high, normal and low. Where all three wait, eight turns go to high, three to normal and one to
low; so what is urgent is quick, and nothing waits for ever.
"""

import pytest

from producer import Producer


@pytest.fixture(scope="module")
def single_row(start_worker):
    """A worker with one row on the queue `lanes`: jobs are answered strictly one after another."""
    return start_worker("--queue", "lanes", "--max-rows", "1").wait_ready()


@pytest.fixture
def lanes(url, single_row):
    with Producer(url, queue="lanes") as producer:
        yield producer


@pytest.fixture
def order_of(lanes, single_row):
    """Submit short jobs while the row is taken by a long one; the lanes in the order in which their jobs then ran."""

    def submit_all(*wanted):
        with single_row.slow():  # so that the long one does not end before the others are there
            long = lanes.submit(prompt="Count from 1 to 100", max_tokens=800, ignore_eos=True)
            assert next(event for event in lanes.stream(long) if event.kind == "tokens")
            jobs = {lanes.submit(prompt="Count from 3 to 5", lane=lane): lane for lane in wanted}
            assert lanes.cancel(long).met == "running"
        for job in jobs:
            assert lanes.result(job, timeout=120).ok
        return [jobs[job] for job in sorted(jobs, key=lambda job: lanes.status(job).claimed_at)]

    return submit_all


def test_an_urgent_job_overtakes_those_that_came_before(order_of):
    """The lane `high` is served before jobs of `low` that have waited longer."""
    order = order_of("low", "low", "low", "high")
    assert order == ["high", "low", "low", "low"]


def test_no_lane_starves(order_of):
    """However many urgent jobs there are, the other lanes have their turns among them."""
    order = order_of(*["high"] * 16, "normal", "low")
    assert order.index("normal") < 12
    assert order.index("low") < 12
