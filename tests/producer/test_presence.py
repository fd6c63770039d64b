"""Workers that say they live, and workers that wait for work."""

import threading
import time

import pytest
import redis

from producer import calls


def test_a_heartbeat_is_seen_until_it_runs_out(desk, wait_until):
    """A worker is listed with its info for as long as it promised, and the hash goes with the last one."""
    desk.run(calls.heartbeat(desk.keys, "a", b"\x00 rows: 8", 60))
    desk.run(calls.heartbeat(desk.keys, "b", b"", 0.05))
    assert desk.run(calls.workers(desk.keys)) in ({"a": b"\x00 rows: 8", "b": b""}, {"a": b"\x00 rows: 8"})
    wait_until(lambda: desk.run(calls.workers(desk.keys)) == {"a": b"\x00 rows: 8"}, 5, "b is forgotten")
    desk.run(calls.heartbeat(desk.keys, "a", b"", 60))
    assert desk.redis.hkeys(desk.keys.workers) == [b"a"]
    assert 0 < desk.redis.ttl(desk.keys.workers) <= 60


def test_waiting_ends_without_work(desk):
    """An idle wait takes its time and answers that there is nothing."""
    began = time.monotonic()
    assert calls.wait_for_work(desk.redis, desk.keys, 0.05) is False
    assert time.monotonic() - began >= 0.04


@pytest.mark.parametrize("lane", ["high", "normal", "low"])
def test_work_that_is_there_is_not_waited_for(desk, lane):
    """A job on any lane answers at once, and waiting takes nothing away."""
    job_id = desk.submit(lane=lane)
    assert calls.wait_for_work(desk.redis, desk.keys, 10) is True
    assert desk.pull("a")[0].job_id == job_id


def test_what_others_run_is_no_work(desk):
    """Entries that are pending at a worker ring no bell."""
    desk.submit()
    desk.take("a")
    assert calls.wait_for_work(desk.redis, desk.keys, 0.05) is False


def test_what_was_handed_back_is_work(desk):
    """A handed-back job answers at once; one that waits for another model does not."""
    desk.submit()
    desk.submit()
    desk.hand_back("a", desk.take("a"), fingerprint="other")
    assert calls.wait_for_work(desk.redis, desk.keys, 10, "mine") is True  # the second job
    claim = desk.take("a")
    assert calls.wait_for_work(desk.redis, desk.keys, 0.05, "mine") is False
    assert calls.wait_for_work(desk.redis, desk.keys, 10, "other") is True
    desk.hand_back("a", claim)
    assert calls.wait_for_work(desk.redis, desk.keys, 10, "mine") is True


@pytest.mark.parametrize("wakes", ["a new job", "a hand-back"])
def test_a_waiting_worker_is_woken(real_desk, redis_url, wait_until, wakes):
    """What comes while a worker blocks wakes it, long before its time is over."""
    real_desk.submit()
    claim = real_desk.take("a")
    answers = []

    def wait():
        with redis.Redis.from_url(redis_url, socket_timeout=60) as own:
            answers.append(calls.wait_for_work(own, real_desk.keys, 30))

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: real_desk.redis.info("clients")["blocked_clients"] == 1, 10, "the worker blocks")
    real_desk.submit() if wakes == "a new job" else real_desk.hand_back("a", claim)
    thread.join(10)
    assert answers == [True]


def test_a_forgotten_script_is_sent_again(real_desk):
    """After SCRIPT FLUSH every call works as before, alone and in a pipeline."""
    job_id = real_desk.submit()
    real_desk.redis.script_flush()
    assert real_desk.status(job_id).state == "queued"
    real_desk.redis.script_flush()
    both = calls.run_many(real_desk.redis, [calls.status(real_desk.keys, job_id)] * 2)
    assert [status.state for status in both] == ["queued", "queued"]
