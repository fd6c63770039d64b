"""The tour's stage: a Redis and a worker on the demo model for all chapters, and more workers for those that ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ops import redis_server as redis_servers
from producer import Producer
from tests.worker.process import WorkerProcess

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where the tour's Redis is: a server of its own, so that no other test empties it under the worker."""
    with redis_servers.start() as server:
        yield server.url


@pytest.fixture(scope="session")
def tour_worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(url, tmp_path_factory.mktemp("tour") / "worker.log", "--max-rows", "8")
    try:
        yield worker.wait_ready()
    finally:
        worker.end()


@pytest.fixture
def worker(tour_worker: WorkerProcess) -> Iterator[WorkerProcess]:
    """One worker with eight rows on the queue `default`, the same for all chapters. Its log is shown with a failure."""
    before = len(tour_worker.log)
    yield tour_worker
    print(tour_worker.log[before:])


@pytest.fixture
def queue(url: str, worker: WorkerProcess) -> Iterator[Producer]:
    """A producer on the queue that `worker` serves."""
    with Producer(url) as producer:
        yield producer


@pytest.fixture(scope="module")
def start_worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartWorker]:
    """`start_worker("--queue", "other")` is one more worker. At the end of its chapter it has to stop well."""
    with ExitStack() as workers:

        def start(*flags: str) -> WorkerProcess:
            worker = WorkerProcess(url, tmp_path_factory.mktemp("worker") / "worker.log", *flags)
            workers.callback(worker.end)
            workers.callback(lambda: print(worker.log))
            return worker

        yield start
