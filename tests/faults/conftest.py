"""Workers that may die, a Redis that may die, and readers that must not notice.

All workers run in deterministic mode, so a job's tokens are the same whoever made them: an undisturbed run of the same
job shows whether a takeover lost or doubled one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from ops import redis_server as redis_servers
from producer import Producer
from producer.protocol import Event, Started, TokenLogprob, Tokens
from tests.conftest import wait_for
from tests.worker.process import WorkerProcess

LEASE_S = 3.0  # a worker that a busy machine stalls for two seconds keeps its jobs
ENDS_WITHIN_S = 240.0  # a second or two on idle cores

# 600 tokens, in part by chance: a new owner has to draw the same ones.
LONG: dict[str, Any] = {
    "prompt": "Count from 1 to 100",
    "max_tokens": 600,
    "ignore_eos": True,
    "temperature": 0.8,
    "seed": 7,
}


class Reader(threading.Thread):
    """Follows one job to its end in a thread of its own, as a service would that knows nothing of what goes on."""

    def __init__(self, url: str, queue: str, job: str) -> None:
        super().__init__(daemon=True)
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.job = job
        self._url, self._queue = url, queue
        self.start()

    def run(self) -> None:
        try:
            with Producer(self._url, queue=self._queue) as producer:
                for event in producer.stream(self.job):
                    self.events.append(event)
        except Exception as error:
            self.error = error

    @property
    def offset(self) -> int:
        """Tokens it has so far."""
        return max((event.offset for event in self.events), default=0)

    def to_the_end(self) -> list[int]:
        """The tokens it got, all in order, none missing, none twice, once the job has ended."""
        self.join(ENDS_WITHIN_S)
        assert not self.is_alive(), f"after {ENDS_WITHIN_S:g} s it still waits, at offset {self.offset}"
        assert self.error is None, self.error
        token_ids: list[int] = []
        for event in self.events:
            if isinstance(event, Tokens):
                assert event.start == len(token_ids)
                token_ids += event.token_ids
        assert self.events[-1].kind == "ended"
        return token_ids

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Those of the tokens it got, where the job asks for them."""
        return [one for event in self.events if isinstance(event, Tokens) for one in event.logprobs or ()]

    @property
    def starts(self) -> list[Started]:
        """Each time a worker took the job."""
        return [event for event in self.events if isinstance(event, Started)]


class Fleet:
    """A queue and the workers on it. Some die in a test; `of` fills up what is missing for the next."""

    def __init__(self, url: str, queue: str, start: Callable[..., WorkerProcess]) -> None:
        self.url, self.queue = url, queue
        self.producer = Producer(url, queue=queue)
        self._start = start
        self._workers: list[WorkerProcess] = []
        self._undisturbed: list[int] = []

    def of(self, count: int, *flags: str) -> list[WorkerProcess]:
        """`count` workers that are ready; those beyond are stopped, those that are missing started with `flags`."""
        alive = [worker for worker in self._workers if worker.is_running]
        while len(alive) > count:
            assert alive.pop().stop() == 0
        alive += [self._start("--queue", self.queue, *flags) for _ in range(count - len(alive))]
        self._workers = alive
        return [worker.wait_ready() for worker in alive]

    @contextmanager
    def apart(self) -> Iterator[Fleet]:
        """Other workers on a queue of their own, stopped at the end; those of this one stay for the next test."""
        fleet = Fleet(self.url, f"{self.queue}-apart", self._start)
        fleet._undisturbed = self._undisturbed  # the same job, so the same tokens
        with closing(fleet.producer):
            yield fleet
            fleet.of(0)

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Within, no long job comes to its end."""
        with ExitStack() as workers:
            for worker in self._workers:
                workers.enter_context(worker.slow())
            yield

    @contextmanager
    def in_mid_sentence(self, jobs: int = 1, **asked: Any) -> Iterator[list[Reader]]:
        """Readers of so many long jobs: all have begun, and none comes to its end within, however fast the machine."""
        with self.slow():
            readers = [self.submit(**asked) for _ in range(jobs)]
            wait_for(lambda: all(reader.offset > 5 for reader in readers), 60, "all jobs are in mid-sentence")
            yield readers

    def submit(self, **asked: Any) -> Reader:
        """A long job, as the one who follows it sees it; `asked` beside what is asked of all."""
        return Reader(self.url, self.queue, self.producer.submit(**LONG, **asked))

    def undisturbed(self) -> list[int]:
        """What the same job gives when nothing happens. Needs a worker the first time."""
        if not self._undisturbed:
            job = self.producer.submit(**LONG)
            self._undisturbed += self.producer.result(job, timeout=ENDS_WITHIN_S).token_ids
        return self._undisturbed

    def holder_of(self, job: str) -> tuple[WorkerProcess, list[WorkerProcess]]:
        """Who works on a job, and the others."""
        name = self.producer.status(job).consumer
        (holder,) = (worker for worker in self._workers if worker.name == name)
        return holder, [worker for worker in self._workers if worker is not holder]


@pytest.fixture(scope="session")
def durable_redis() -> Iterator[redis_servers.RedisServer]:
    """A Redis for this folder that keeps every write, and that a test may kill and restart."""
    with redis_servers.start(appendonly=True, appendfsync="always") as server:
        yield server


@pytest.fixture(scope="session")
def session_fleet(
    durable_redis: redis_servers.RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Fleet, list[WorkerProcess]]]:
    started: list[WorkerProcess] = []
    with ExitStack() as at_the_end:

        def start(*flags: str) -> WorkerProcess:
            log = tmp_path_factory.mktemp("worker") / "worker.log"
            fixed = ("--deterministic", "--lease-s", f"{LEASE_S:g}", "--max-rows", "4")
            started.append(WorkerProcess(durable_redis.url, log, *fixed, *flags))
            at_the_end.callback(started[-1].end)
            return started[-1]

        fleet = Fleet(durable_redis.url, "default", start)
        at_the_end.callback(fleet.producer.close)
        yield fleet, started


@pytest.fixture
def fleet(session_fleet: tuple[Fleet, list[WorkerProcess]]) -> Iterator[Fleet]:
    """Workers with a lease of three seconds, on a Redis of their own. Their logs are shown with a failure."""
    fleet, started = session_fleet
    before = {worker: len(worker.log) for worker in started}
    yield fleet
    for worker in started:
        print(f"--- worker {worker.pid}")
        print(worker.log[before.get(worker, 0) :])
