"""Deployments of Redis to reach, and a worker played by hand on each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from ops import redis_deployments
from ops.redis_deployments import ClusterDeployment
from producer import Producer
from producer.connection import connect
from producer.keys import Keys
from producer.protocol import Event, Tokens
from tests.producer.conftest import Desk, EchoWorker

QUEUE = "reach"
PARTITIONS = 5
"""More than nodes, so that some node has several."""


class Reader(threading.Thread):
    """Follows one job to its end in a thread of its own."""

    def __init__(self, url: str, job: str, **client: Any) -> None:
        super().__init__(daemon=True)
        self.events: list[Event] = []
        self.error: Exception | None = None
        self._url, self._job, self._client = url, job, {"queue": QUEUE, **client}
        self.start()

    def run(self) -> None:
        try:
            with Producer(self._url, **self._client) as producer:
                for event in producer.stream(self._job):
                    self.events.append(event)
        except Exception as error:
            self.error = error

    @property
    def token_ids(self) -> list[int]:
        """All tokens so far, none missing, none twice."""
        found: list[int] = []
        for event in list(self.events):
            if isinstance(event, Tokens):
                assert event.start == len(found)
                found += event.token_ids
        return found

    def to_the_end(self, timeout_s: float = 60.0) -> list[int]:
        """The tokens, once the job has ended."""
        self.join(timeout_s)
        assert not self.is_alive(), f"after {timeout_s:g} s it still waits, with {self.token_ids}"
        assert self.error is None, self.error
        assert self.events[-1].kind == "ended"
        return self.token_ids


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterDeployment]:
    """Three nodes, for tests that kill none and leave no slot in between."""
    with redis_deployments.start_cluster() as started:
        yield started


@pytest.fixture
def cluster_url(cluster: ClusterDeployment) -> str:
    """The url of an empty cluster that has seen no script."""
    for node in cluster.nodes:
        with redis.Redis(port=node.port) as connection:
            connection.flushall()
            connection.script_flush()
    return cluster.url


@pytest.fixture
def cluster_desks(cluster_url: str) -> Iterator[list[Desk]]:
    """Every partition of the queue, all through one client."""
    with connect(cluster_url) as client:
        yield [Desk(client, Keys(QUEUE, partition)) for partition in range(PARTITIONS)]


@pytest.fixture
def echo_workers() -> Iterator[Callable[[str], None]]:
    """`echo_workers(url)` starts a worker for every partition that answers each job with its own prompt."""
    started: list[EchoWorker] = []

    def start(url: str) -> None:
        for partition in range(PARTITIONS):
            started.append(EchoWorker(url, Keys(QUEUE, partition)).__enter__())

    yield start
    for worker in started:
        worker.__exit__()
