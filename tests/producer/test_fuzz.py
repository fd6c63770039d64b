"""Random schedules over the real scripts: three workers, leases that may be over at any moment, replies that get lost.

A schedule is a seed (fuzz/schedule.py); the first SLIPSTREAM_FUZZ_SEEDS are played here, and `make fuzz` plays more.
A seed that fails prints itself and what of its schedule it takes to fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future

import fakeredis
import pytest

from tests.producer.fuzz.guards import BREAKING, GUARDS, SHOWN_BY, stands_in
from tests.producer.fuzz.schedule import make
from tests.producer.fuzz.spread import fails, failure_of, first_notice, in_blocks, processes, shrunk_to

SEEDS = int(os.environ.get("SLIPSTREAM_FUZZ_SEEDS", "300"))
ON_FAKEREDIS = 10  # of them there too, which takes ten times as long
GUARD_SEEDS = 600  # some tens are enough for most


def tried_for(guard: str) -> list[int]:
    """Seeds, the one first that is known to show this guard's absence: most of the time goes into finding those."""
    known = [SHOWN_BY[guard]] if guard in SHOWN_BY else []
    return [*known, *range(GUARD_SEEDS)]


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[dict[str, list[Future[str | None]]]]:
    """What the tests that were asked for are waiting for, played on all cores at once."""
    asked = [item for item in request.session.items if item.nodeid.startswith(request.node.nodeid)]
    names = [item.callspec.params["guard"] for item in asked if hasattr(item, "callspec")]
    with processes() as pool:
        yield {
            "seeds": in_blocks(pool, range(SEEDS), 25),
            **{name: [pool.submit(first_notice, tried_for(name), name)] for name in names},
        }
        pool.shutdown(cancel_futures=True)


def test_no_schedule_loses_doubles_or_reorders_a_token(played):
    """Every job ends once, with every token once, and sets and counts agree; on a real Redis."""
    failures = [text for future in played["seeds"] if (text := future.result())]
    assert not failures, "\n\n".join(failures)


def test_no_schedule_does_so_on_fakeredis_either():
    """The first seeds again, on what the demo runs on where there is no redis-server."""
    with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as connection:
        for seed in range(min(SEEDS, ON_FAKEREDIS)):
            failure = failure_of(connection, make(seed))
            assert failure is None, failure


@pytest.mark.parametrize("guard", GUARDS)
def test_some_schedule_notices_each_missing_guard(played, guard):
    """With any one of the scripts' checks taken out, a schedule fails."""
    assert stands_in(guard), "the guard to break is not there any more"
    (future,) = played[guard]
    assert future.result() is not None, f"{GUARD_SEEDS} schedules went well without it"


def test_a_failing_schedule_is_shrunk_to_what_it_takes(redis_client):
    """Where any worker may publish, a few acts show it; each of them is needed, and they are what is printed."""
    breaking = BREAKING["no owner check in publish"]()
    failed = next(found for seed in range(GUARD_SEEDS) if (found := fails(redis_client, make(seed), breaking)))
    shrunk = shrunk_to(redis_client, failed, breaking).schedule
    assert len(shrunk.steps) <= 8, shrunk
    assert fails(redis_client, shrunk) is None, "it fails with the guard in place too"
    for at in range(len(shrunk.steps)):
        fewer = shrunk.without(at)
        assert fails(redis_client, fewer, breaking) is None, f"act {at} is not needed"
    text = failure_of(redis_client, failed.schedule, breaking) or ""
    assert text.startswith(f"seed {failed.schedule.seed}: ")
    assert str(shrunk) in text
