"""How an idle worker waits: the bell rings for what can be pulled, and takes nothing itself."""

from __future__ import annotations

from multiprocessing.connection import wait

import pytest

from producer import calls, connection
from producer.keys import Keys
from worker.doorbell import Doorbell

KEYS = Keys("test")
RINGS_WITHIN_S = 30.0


@pytest.fixture
def bell(redis_url):
    doorbell = Doorbell(lambda: connection.connect_to_block(redis_url), [KEYS], "a-model")
    yield doorbell
    doorbell.close()


def rings(bell, timeout_s=RINGS_WITHIN_S):
    """Whether it rings within so many seconds."""
    return bool(wait([bell], timeout_s)) and bell.answer()


def test_it_rings_for_a_job_that_is_there_already(bell, producer):
    """Whatever came before one listens is not missed."""
    producer.submit(prompt="Hello")
    bell.listen()
    assert rings(bell)


@pytest.mark.parametrize("lane", ["high", "normal", "low"])
def test_it_rings_when_a_job_comes(bell, producer, lane):
    """One blocking read covers all lanes."""
    bell.listen()
    assert not rings(bell, 0.05)
    producer.submit(prompt="Hello", lane=lane)
    assert rings(bell)


def test_it_rings_once_for_each_time_one_listens(bell, producer):
    """Nobody is woken again and again for a job that another worker may have taken long ago."""
    bell.listen()
    producer.submit(prompt="Hello")
    assert rings(bell)
    assert not rings(bell, 0.05)
    bell.listen()
    assert rings(bell)


def test_it_takes_nothing(bell, producer, redis_client):
    """The job it rang for is still there for whoever pulls first."""
    job = producer.submit(prompt="Hello")
    bell.listen()
    assert rings(bell)
    (delivery,) = calls.run(redis_client, calls.pull(KEYS, "anybody", 5)).deliveries
    assert delivery.job_id == job


def test_it_rings_for_what_another_worker_hands_back(bell, producer, half):
    """Also where no new job comes: the handed-over one is not left waiting."""
    producer.submit(prompt="Hello")
    anna = half("anna")
    (job,) = anna.take()
    bell.listen()
    assert not rings(bell, 0.05)
    calls.run(anna.redis, calls.hand_back(KEYS, "anna", anna.outbox.held))
    assert rings(bell)
    assert calls.run(anna.redis, calls.status(KEYS, job.job_id)).state == "queued"


def test_it_survives_a_lost_connection(bell, producer, redis_client):
    """A firewall, a restart: it listens again on a new connection."""
    bell.listen()
    assert not rings(bell, 0.05)
    redis_client.client_kill_filter(_type="normal", skipme=True)
    producer.submit(prompt="Hello")
    assert rings(bell)
