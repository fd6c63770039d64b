"""How long a token takes to its reader, with 1, 100 and 1,000 of them: one worker, one process that reads.

Three times a token: from submit to the first token; from its flush (the worker begins to publish it) to its reader;
from the engine (it has said the token) to its reader, the wait for the next flush included. All on one machine with one
clock. The engine takes a step every 20 ms.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ops import redis_server
from ops.bench.machine import ROOT
from ops.bench.queue_systems import Failed, Slipstream, end
from ops.bench.queue_throughput import go, wait_ready

STEP_MS = 20.0
WITHIN_S = 120.0


@dataclass(frozen=True)
class Load:
    """So many readers, each with `jobs` jobs of `tokens` tokens, one token in `every` steps."""

    readers: int
    jobs: int
    tokens: int
    every: int
    spread_s: float

    @property
    def tokens_per_s(self) -> float:
        """What the engine makes while all are there."""
        return self.readers * 1000 / STEP_MS / self.every


LOADS = [
    Load(readers=1, jobs=40, tokens=10, every=1, spread_s=0),
    Load(readers=100, jobs=4, tokens=100, every=1, spread_s=2),
    # A token a row in each step would be 50,000 events/s for one process of Python to read.
    Load(readers=1000, jobs=2, tokens=40, every=12, spread_s=9),
]


@dataclass(frozen=True)
class Latency:
    """p50 and p99, in ms."""

    readers: int
    tokens_per_s: float
    events: int
    first_token: tuple[float, float]
    from_flush: tuple[float, float]
    from_engine: tuple[float, float]


def measure(load: Load) -> Latency:
    """Raises Failed."""
    with ExitStack() as stack:
        server = stack.enter_context(redis_server.start())
        trace = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "flushes.json"
        system = Slipstream(step_ms=STEP_MS, every=load.every)
        worker = system.start(server.url, load.readers, f"--trace={trace}")
        stack.callback(end, worker)
        wait_ready("slipstream", worker)
        go(worker)
        flags = {"readers": load.readers, "jobs": load.jobs, "tokens": load.tokens, "spread": load.spread_s}
        command = [sys.executable, "-m", "ops.bench.queue_readers", f"--redis={server.url}"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{load.readers} readers had not read all after {WITHIN_S:.0f} s") from error
        if done.returncode:
            raise Failed(f"the readers failed: {done.stderr.strip().splitlines()[-1]}")
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=60)
        flushed = {(job, offset): (made, flushed) for job, offset, made, flushed in json.loads(trace.read_text())}
    seen = json.loads(done.stdout)
    if len(seen["first_token_s"]) != load.readers * load.jobs:
        raise Failed(f"{len(seen['first_token_s'])} jobs had tokens, expected {load.readers * load.jobs}")
    events = [(at, *flushed[job, offset]) for job, offset, at in seen["events"]]
    return Latency(
        load.readers,
        load.tokens_per_s,
        len(events),
        percentiles(seen["first_token_s"]),
        percentiles([at - flush for at, _, flush in events]),
        percentiles([at - made for at, made, _ in events]),
    )


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99, in ms."""
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return round(1000 * hundredths[49], 2), round(1000 * hundredths[98], 2)
