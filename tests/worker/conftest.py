"""Workers for the tests of this folder: processes on the demo model, and its text side in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ops import redis_server as redis_servers
from producer import Producer
from tests.worker.process import DEMO_MODEL, WorkerProcess


@pytest.fixture(scope="module")
def served_url() -> Iterator[str]:
    """A Redis for the module's worker: no other test empties it meanwhile."""
    with redis_servers.start() as server:
        yield server.url


@pytest.fixture(scope="module")
def module_worker(served_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(served_url, tmp_path_factory.mktemp("worker") / "worker.log", "--max-rows", "4")
    try:
        yield worker.wait_ready()
    finally:
        worker.end()


@pytest.fixture
def worker(module_worker: WorkerProcess) -> Iterator[WorkerProcess]:
    """One worker with four rows, the same for the whole module. Its log is shown with a failure."""
    before = len(module_worker.log)
    yield module_worker
    print(module_worker.log[before:])


@pytest.fixture
def queue(served_url: str, worker: WorkerProcess) -> Iterator[Producer]:
    """A producer on the queue that `worker` serves."""
    with Producer(served_url) as producer:
        yield producer


@pytest.fixture
def start_worker(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """`start_worker("--max-rows", "1", url=..., model=...)` is a worker; at the end those left have to stop well."""
    with ExitStack() as workers:

        def start(*flags: str, url: str = redis_url, model: Path = DEMO_MODEL) -> WorkerProcess:
            worker = WorkerProcess(url, tmp_path / f"worker-{len(list(tmp_path.iterdir()))}.log", *flags, model=model)
            workers.callback(worker.end)
            workers.callback(lambda: print(worker.log))
            return worker

        yield start
