"""The loop that joins the halves: it does what is due when it is due, and sleeps in between."""

from __future__ import annotations

import time

import msgpack
import psutil
import redis

from producer import Producer, calls
from producer.keys import Keys
from tests.worker.conftest import SHORT_LEASE_S


def test_a_full_worker_sleeps(session_worker, served_url, wait_until):
    """All rows taken, so nothing can be reclaimed: that it would be time to do so keeps no core busy."""
    worker = session_worker("one")
    loop = psutil.Process(worker.pid)
    with Producer(served_url, queue="one") as queue:
        with worker.slow(token_s=0.5):  # the job runs, and steps hardly ask for the loop's time
            job = queue.submit(prompt="Count from 1 to 100", max_tokens=500, ignore_eos=True)
            assert next(event for event in queue.stream(job) if event.kind == "tokens")
            due = time.monotonic() + SHORT_LEASE_S / 3 * 1.2
            wait_until(lambda: time.monotonic() > due, 60, "it would be time to reclaim")
            before, began = loop.cpu_times(), time.monotonic()
            wait_until(lambda: time.monotonic() > began + 1, 60, "a second has passed")
            used, passed = loop.cpu_times(), time.monotonic() - began
        assert used.user + used.system - before.user - before.system < passed / 2
        assert queue.result(job, timeout=120).ok


def test_a_worker_says_that_it_lives(worker, served_url, queue, wait_until):
    """Its heartbeat names its model and what it has done, and is there as long as it is."""
    queue.result(queue.submit(prompt="Count from 3 to 5"), timeout=60)
    with redis.Redis.from_url(served_url) as connection:

        def heartbeat():
            alive = calls.run(connection, calls.workers(Keys("default")))
            return msgpack.unpackb(alive[worker.name]) if worker.name in alive else {"finished": 0}

        wait_until(lambda: heartbeat()["finished"] > 0, 30, "its heartbeat counts the job")
        wait_until(lambda: heartbeat().get("model") == "model", 30, "it names its model")


def test_lanes_reach_into_the_batch(small_pool, session_worker, wait_until):
    """Where jobs wait for a row inside the worker, the more important one gets it first."""
    with session_worker("pages").slow():
        long = small_pool.submit(prompt="Count from 1 to 100", max_tokens=250, ignore_eos=True)
        assert next(event for event in small_pool.stream(long) if event.kind == "tokens")
        text = {"prompt": "Count from 1 to 100", "max_tokens": 200, "ignore_eos": True}
        low = [small_pool.submit(**text, lane="low") for _ in "ab"]
        high = small_pool.submit(**text, lane="high")
        wait_until(lambda: small_pool.status(high).state == "running", 60, "all three wait inside the worker")
    ended = {job: small_pool.result(job, timeout=120) and small_pool.status(job).ended_at for job in (*low, high)}
    assert ended[high] < min(ended[job] for job in low)
