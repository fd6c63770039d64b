"""Jobs through a system: put on its queue while no worker is there, then worked off by some that have all started.

What counts is from the first twentieth of the jobs done to the last, so that no system pays for its connecting.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass

import redis as sync_redis

from ops import redis_server
from ops.bench.queue_systems import Failed, System, end

STARTED_SHARE = 0.05
LOOK_EVERY_S = 0.005
WITHIN_S = 240.0


@dataclass(frozen=True)
class Throughput:
    """One system's, with some workers."""

    workers: int
    jobs: int
    enqueued_per_s: float
    jobs_per_s: float
    redis_cpu_us: float  # of the server, a job, from the start signal to the last end
    wall_s: float


def measure(system: System, workers: int, jobs: int, rows: int) -> Throughput:
    """Feed it, start workers, have them work it off. Raises Failed."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server.start())
        redis = stack.enter_context(sync_redis.Redis.from_url(server.url))
        enqueued_s = system.enqueue(server.url, jobs)
        started = [system.start(server.url, rows) for _ in range(workers)]
        for process in started:
            stack.callback(end, process)
        for process in started:
            wait_ready(system.name, process)
        cpu, began = redis_cpu_s(redis), time.perf_counter()
        for process in started:
            go(process)
        first_at, first_left, done_at = _watch(system, redis, jobs, started)
        cpu = redis_cpu_s(redis) - cpu
        _check_answers(system, redis, jobs)
    return Throughput(
        workers, jobs, jobs / enqueued_s, first_left / (done_at - first_at), 1e6 * cpu / jobs, done_at - began
    )


def wait_ready(name: str, process: subprocess.Popen[str]) -> None:
    """Until a worker has said "ready". Raises Failed."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            return
    raise Failed(f"{name}: a worker ended with exit code {process.wait()} before it was ready")


def go(process: subprocess.Popen[str]) -> None:
    """Let a worker that is ready begin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def redis_cpu_s(redis: sync_redis.Redis) -> float:
    """CPU time of the server so far."""
    used = redis.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def _watch(
    system: System, redis: sync_redis.Redis, jobs: int, workers: list[subprocess.Popen[str]]
) -> tuple[float, int, float]:
    """When the first twentieth was done, what was left then, and when nothing was."""
    deadline = time.perf_counter() + WITHIN_S
    first: tuple[float, int] | None = None
    while left := system.left(redis, jobs):
        now = time.perf_counter()
        if first is None and left <= (1 - STARTED_SHARE) * jobs:
            first = now, left
        if now > deadline:
            raise Failed(f"{system.name}: {left} of {jobs} jobs are left after {WITHIN_S:.0f} s")
        if dead := [worker.returncode for worker in workers if worker.poll() is not None]:
            raise Failed(f"{system.name}: a worker ended with exit code {dead[0]}, {left} jobs before the last")
        time.sleep(LOOK_EVERY_S)  # each look takes the server's time from the system
    if first is None:
        raise Failed(f"{system.name}: {jobs} jobs were done before one could look: give more --jobs")
    return (*first, time.perf_counter())


def _check_answers(system: System, redis: sync_redis.Redis, jobs: int) -> None:
    """Every job has a result, if not at once (some systems settle a job before its result)."""
    deadline = time.perf_counter() + 5
    while (found := system.answered(redis)) != jobs:
        if time.perf_counter() > deadline:
            raise Failed(f"{system.name}: {found} results of {jobs} jobs")
        time.sleep(0.05)  # its workers write the last results
