"""What one step of a full batch costs to publish: on the engine's step thread, in the Redis half, and in Redis.

The engine is a process of its own, so its step thread pays for one message a step, nothing else: that is measured with
the loop of worker/engine/serve.py around an engine that computes nothing, and a process that reads. The Redis half pays
for text, packing and the call, on another core and beside the next step: worker/inbox.py and worker/outbox.py as they
are, every job with one new token, flushed once a step and once in `FLUSHED_TOGETHER` steps, as at flush_interval_s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import Any

import redis as sync_redis

from ops import redis_server
from ops.bench.machine import ROOT
from ops.bench.queue_systems import MODEL, QUEUE
from ops.bench.queue_throughput import redis_cpu_s
from ops.bench.queue_worker import MAX_LEN, TOKENS
from producer import Job, Producer
from producer.connection import connect
from worker.engine_link import Emission
from worker.inbox import Inbox
from worker.outbox import Outbox
from worker.partitions import Partitions
from worker.text import TextModel

STEP_S = 0.020
FLUSHED_TOGETHER = 2
_DRAIN = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
try:
    while True:
        connection.recv()
except EOFError:
    pass
"""


@dataclass(frozen=True)
class Publishing:
    """CPU time of one step with `jobs` running, in microseconds; medians, but for Redis, which is a mean."""

    jobs: int
    steps: int
    step_thread_us: float
    redis_half_us: dict[str, float]  # `text`: taking the tokens in; `flush 1`, `flush 2`: of so many steps, a step
    redis_us: dict[str, float]

    @property
    def step_thread_share(self) -> float:
        """Of a step of 20 ms."""
        return self.step_thread_us / 1e6 / STEP_S


def measure(jobs: int, steps: int) -> Publishing:
    """All three, with so many running jobs, over so many steps."""
    half: dict[str, float] = {}
    server: dict[str, float] = {}
    for together in (1, FLUSHED_TOGETHER):
        with redis_server.start() as started, sync_redis.Redis.from_url(started.url) as redis:
            text, flush, server[f"flush {together}"] = _redis_half(redis, started.url, jobs, steps, together)
        half |= {"text": text, f"flush {together}": flush}
    return Publishing(jobs, steps, _step_thread_us(jobs, steps), half, server)


def _redis_half(redis: sync_redis.Redis, url: str, jobs: int, steps: int, together: int) -> tuple[float, float, float]:
    """CPU of taking in a step's tokens, of flushing them, and of Redis meanwhile: microseconds a step."""
    own = connect(url, timeout_s=10.0, resends=0)
    partitions, text = Partitions(QUEUE, (0,)), TextModel.from_pretrained(str(MODEL))
    inbox = Inbox(own, partitions, "bench", text, "model", MAX_LEN)
    outbox = Outbox(own, partitions, "bench")
    fields = {"prompt": "Count", "sampling": {"max_tokens": MAX_LEN - 8, "temperature": 0, "ignore_eos": True}}
    with Producer(url, queue=QUEUE) as producer:
        producer.submit_many(Job.model_validate(fields) for _ in range(jobs))
    while len(outbox.jobs) < jobs:
        inbox.pull(jobs, ())
        for job in inbox.take().jobs:
            outbox.add(job)
    ids = list(outbox.jobs)
    taking: list[float] = []
    flushing: list[float] = []
    cpu = 0.0
    warm_up = max(together, steps // 10)
    for step in range(warm_up + steps):
        if step == warm_up:
            taking.clear()
            flushing.clear()
            cpu = redis_cpu_s(redis)
        emissions: list[Emission] = [(id_, [TOKENS[step % len(TOKENS)]], None, None, 0, None) for id_ in ids]
        taking.append(_cpu_us(partial(outbox.take, emissions)))
        if step % together == together - 1:
            flushing.append(_cpu_us(outbox.flush) / together)
    assert not outbox.unpublished or together > 1
    assert len(outbox.jobs) == jobs
    return statistics.median(taking), statistics.median(flushing), 1e6 * (redis_cpu_s(redis) - cpu) / steps


def _cpu_us(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return 1e6 * (time.process_time() - began)


@dataclass
class _Unmoved:
    """An engine whose steps cost nothing: the time from the end of one to the beginning of the next is what counts."""

    output: Any
    steps: int
    between_us: list[float] = field(default_factory=list)
    ended: float = 0.0
    has_work = True

    def step(self) -> Any:
        if self.ended:
            self.between_us.append(1e6 * (time.thread_time() - self.ended))
        if len(self.between_us) == self.steps:
            raise StopIteration
        self.ended = time.thread_time()
        return self.output

    def load(self) -> dict[str, int]:
        return dict.fromkeys((f"count {number}" for number in range(11)), 1_000_000)


def _step_thread_us(jobs: int, steps: int) -> float:
    """CPU between two steps of the engine's loop, with a message about `jobs` tokens on its way."""
    from worker.engine import serve  # torch comes with it
    from worker.engine.outcome import Emission as Emitted
    from worker.engine.outcome import StepOutput

    emitted = [Emitted(1_000_000 + job, [300 + job % 200]) for job in range(jobs)]
    engine = _Unmoved(StepOutput(emitted, jobs, jobs, 0), steps)
    ours, theirs = Pipe()
    reads = [sys.executable, "-c", _DRAIN, str(theirs.fileno())]
    with ours, subprocess.Popen(reads, cwd=ROOT, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            serve._step_on(engine, ours, SimpleQueue())  # type: ignore[arg-type]  # an engine as far as it is asked
        except StopIteration:
            ours.close()
        process.wait()
    return statistics.median(engine.between_us)
