"""Workers for the tests of this folder: whole ones as processes, and the Redis half of one in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from ops import redis_server as redis_servers
from producer import Producer
from producer.keys import Keys
from tests.worker.process import DEMO_MODEL, WorkerProcess
from worker.inbox import Inbox
from worker.jobs import RunningJob
from worker.outbox import Outbox
from worker.partitions import Partitions
from worker.text import TextModel

SHORT_LEASE_S = 4.0  # of the worker on the queue `one`


@pytest.fixture(scope="session")
def served_url() -> Iterator[str]:
    """The Redis of `worker`: no other test empties it meanwhile."""
    with redis_servers.start() as server:
        yield server.url


@pytest.fixture(scope="session")
def health_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `worker` touches while it is well."""
    return tmp_path_factory.mktemp("health") / "healthy"


@pytest.fixture(scope="session")
def session_workers(
    served_url: str, health_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, WorkerProcess]]:
    """A worker for each queue. They start side by side, since most of a start is one core's imports."""
    flags = {
        "default": ("--max-rows", "4", "--health-file", f"{health_file}"),
        "pages": ("--max-rows", "8", "--num-pages", "10"),
        "one": ("--max-rows", "1", "--lease-s", f"{SHORT_LEASE_S:g}"),
    }
    logs = tmp_path_factory.mktemp("workers")
    with ExitStack() as at_the_end:
        workers = {}
        for name, own in flags.items():
            workers[name] = WorkerProcess(served_url, logs / f"{name}.log", "--queue", name, *own)
            at_the_end.callback(workers[name].end)
        yield {name: worker.wait_ready() for name, worker in workers.items()}


@pytest.fixture
def session_worker(session_workers: dict[str, WorkerProcess]) -> Iterator[Callable[[str], WorkerProcess]]:
    """`session_worker("pages")` is the one on that queue; its log since then is shown with a failure."""
    before = {name: len(worker.log) for name, worker in session_workers.items()}
    asked: list[str] = []

    def of(queue: str) -> WorkerProcess:
        asked.append(queue)
        return session_workers[queue]

    yield of
    for name in asked:
        print(session_workers[name].log[before[name] :])


@pytest.fixture
def worker(session_worker: Callable[[str], WorkerProcess]) -> WorkerProcess:
    """One worker with four rows, the same for all tests."""
    return session_worker("default")


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


@pytest.fixture
def small_pool(served_url: str, session_worker: Callable[[str], WorkerProcess]) -> Iterator[Producer]:
    """A producer on the queue of a worker with eight rows and ten pages of 32 tokens."""
    session_worker("pages")
    with Producer(served_url, queue="pages") as producer:
        yield producer


@pytest.fixture(scope="session")
def text() -> TextModel:
    """The demo model's tokenizer, template and defaults."""
    return TextModel.from_pretrained(str(DEMO_MODEL))


class LossyRedis(redis.Redis):
    """A connection on which answers get lost: the server has done what it was told, but nobody hears of it."""

    answers_to_lose = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self._lose_or_give(super().execute_command(*args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        pipeline = super().pipeline(transaction, shard_hint)
        execute = pipeline.execute
        pipeline.execute = lambda *args, **options: self._lose_or_give(execute(*args, **options))
        return pipeline

    def _lose_or_give(self, answer: Any) -> Any:
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise redis.ConnectionError("the answer was lost on its way")
        return answer


class RedisHalf:
    """What one worker does with Redis, without an engine: a test says what tokens its jobs get."""

    KEYS = Keys("test")
    PARTITIONS = Partitions("test", [0])

    def __init__(self, url: str, name: str, text: TextModel) -> None:
        self.redis = LossyRedis.from_url(url)
        self.inbox = Inbox(self.redis, self.PARTITIONS, name, text, "demo", max_len=1024)
        self.outbox = Outbox(self.redis, self.PARTITIONS, name)

    def take(self, room: int = 8) -> list[RunningJob]:
        """Pull and claim; the jobs are in the outbox from here on."""
        self.inbox.pull(room, [item.delivery for item in self.outbox.held])
        return self.admit()

    def take_over(self) -> list[RunningJob]:
        """Reclaim as if every lease were over, and claim."""
        while not self.inbox.reclaim(0, 8):
            pass
        return self.admit()

    def admit(self) -> list[RunningJob]:
        taken = self.inbox.take()
        for refusal in taken.refused:
            self.outbox.refuse(refusal)
        for job in taken.jobs:
            self.outbox.add(job)
        return taken.jobs

    def emit(self, job: RunningJob, token_ids: list[int], reason: str | None = None) -> None:
        """As if the engine had made these tokens, one a step."""
        for at, token in enumerate(token_ids, start=1):
            self.outbox.take([(job.sequence_id, [token], reason if at == len(token_ids) else None, None, 0, None)])


@pytest.fixture
def half(redis_url: str, text: TextModel) -> Iterator[Callable[[str], RedisHalf]]:
    """`half("anna")` is the Redis half of a worker of that name on the queue `test`."""
    with ExitStack() as connections:

        def make(name: str) -> RedisHalf:
            made = RedisHalf(redis_url, name, text)
            connections.callback(made.redis.close)
            return made

        yield make


@pytest.fixture
def producer(redis_url: str) -> Iterator[Producer]:
    """A producer on the queue `test`."""
    with Producer(redis_url, queue="test") as client:
        yield client
