"""A Redis that restarts, hangs, or forgets: the workers go on, and so do the readers."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
import redis

from producer.keys import Keys
from tests.faults.conftest import LEASE_S

KEYS = Keys("default")
LONGER_S = 1.2 * LEASE_S  # than a lease, and than an engine may hang


@pytest.fixture
def admin(durable_redis):
    with redis.Redis.from_url(durable_redis.url) as connection:
        yield connection


def test_redis_restarts_in_mid_sentence(fleet, durable_redis):
    """With an append-only file nothing is lost: the worker publishes what it has meanwhile, the reader goes on."""
    (worker,) = fleet.of(1)
    expected = fleet.undisturbed()
    before = len(worker.said("redis_down"))
    with fleet.in_mid_sentence() as (reader,):
        durable_redis.kill9()
        worker.wait_for("redis_down", already=before)
        durable_redis.restart()

    assert reader.to_the_end() == expected
    assert fleet.producer.status(reader.job).deliveries == 1
    assert worker.is_running


def test_an_outage_longer_than_a_lease_is_no_stampede(fleet, durable_redis, wait_until):
    """All leases have run out when Redis is back. Who is there first lets the others renew; no job changes hands."""
    fleet.of(2)
    expected = fleet.undisturbed()
    with fleet.in_mid_sentence(jobs=8) as readers:  # four on each worker
        durable_redis.kill9()
        back_at = time.monotonic() + LONGER_S
        wait_until(lambda: time.monotonic() > back_at, 60, "all leases have run out")
        durable_redis.restart()

    for reader in readers:
        assert reader.to_the_end() == expected
        assert fleet.producer.status(reader.job).deliveries == 1


def test_decoding_pauses_while_too_much_is_unpublished(fleet, durable_redis, wait_until):
    """Redis is away and the worker may hold no more: it waits, and is not taken for one that hangs."""
    with fleet.apart() as apart:
        (worker,) = apart.of(1, "--max-unpublished", "40")
        expected = apart.undisturbed()
        before = len(worker.said("redis_down"))
        with apart.in_mid_sentence() as (reader,):
            durable_redis.kill9()
            worker.wait_for("redis_down", already=before)
        back_at = time.monotonic() + LONGER_S
        wait_until(lambda: time.monotonic() > back_at, 60, "a hang would have been found")
        durable_redis.restart()

        assert reader.to_the_end() == expected
        assert worker.is_running


def test_a_redis_that_hangs_for_longer_than_a_lease_is_waited_for(fleet, durable_redis, wait_until):
    """The engine speaks while its worker waits for Redis: that is not taken for a hang of the engine."""
    (worker,) = fleet.of(1)
    expected = fleet.undisturbed()
    before = len(worker.said("redis_down"))
    hung = psutil.Process(durable_redis.pid)
    with fleet.in_mid_sentence() as (reader,):
        hung.suspend()
        over_at = time.monotonic() + LONGER_S
        try:
            worker.wait_for("redis_down", already=before)
            wait_until(lambda: time.monotonic() > over_at, 60, "it has hung for longer than a lease")
        finally:
            hung.resume()

    assert reader.to_the_end() == expected
    assert fleet.producer.status(reader.job).deliveries == 1
    assert worker.is_running


def test_scripts_that_were_flushed_are_sent_again(fleet, admin, wait_until):
    """SCRIPT FLUSH, or a failover to a server that never saw them: nobody notices."""
    fleet.of(1)
    expected = fleet.undisturbed()
    with fleet.in_mid_sentence() as (reader,):
        for _ in range(3):
            wait_until(lambda before=reader.offset: reader.offset > before, 60, "more tokens")
            admin.script_flush()
    assert reader.to_the_end() == expected


def test_a_group_that_was_destroyed_is_made_again(fleet, admin):
    """Who had what is forgotten, so entries are handed out again; a job that ran goes on from its tokens."""
    (worker,) = fleet.of(1)
    expected = fleet.undisturbed()
    with fleet.in_mid_sentence() as (reader,):
        for lane in KEYS.lanes:
            admin.xgroup_destroy(lane, "workers")
    after = fleet.producer.submit(prompt="Count from 3 to 5\n")

    assert fleet.producer.result(after, timeout=60).text == "3 4 5"
    assert reader.to_the_end() == expected
    assert worker.is_running


def test_a_database_that_was_emptied_loses_its_jobs_and_no_worker(fleet, admin, wait_until):
    """FLUSHALL: the reader is told that its job is unknown, the worker lets it go, and the next job is answered."""
    (worker,) = fleet.of(1)
    with fleet.in_mid_sentence() as (reader,):
        admin.flushall()

    wait_until(
        lambda: reader.job in [line["job"] for line in worker.said("job_lost")], 60, "the worker sees it is gone"
    )
    assert fleet.producer.result(fleet.producer.submit(prompt="Count from 3 to 5\n"), timeout=60).text == "3 4 5"
    reader.join(60)
    assert type(reader.error).__name__ == "JobUnknown"


def test_told_to_stop_while_redis_is_away(fleet, durable_redis):
    """It waits for Redis as long as its grace lasts, and then leaves the rest to the leases."""
    fleet.of(0)
    (worker,) = fleet.of(1, "--drain-grace-s", "0.5")
    with fleet.in_mid_sentence() as (reader,):
        durable_redis.kill9()
        worker.wait_for("redis_down")

    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert worker.said("hand_back_failed")

    durable_redis.restart()
    fleet.of(1)
    assert reader.to_the_end() == fleet.undisturbed()
