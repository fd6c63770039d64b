"""A step's time while every row streams through a real Redis: the Redis half as a process, and as a thread.

Torch gives up the interpreter's lock at each of a step's small operations, so a thread that encodes, publishes and
detokenizes beside the engine gets in between. The worker keeps the Redis half in a process of its own unless the thread
makes steps less than 5 % longer; this measures it. A worker starts afresh for each run, the ways taking turns; one
reader follows all jobs from a third process. `alone` is the engine with neither.

A step's time is from one step's message to the next, over the longest stretch in which all rows only decode: what the
engine does between two steps counts too. Needs a redis-server.

Exit codes: 0 measured, 1 it could not be.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis as sync_redis

from ops import redis_server
from ops.bench import models, report
from ops.bench.loop_worker import Sample, prompts, warm_up_tokens
from ops.bench.machine import ROOT, Machine
from ops.bench.report import BenchError
from ops.demo.servers import Program
from producer import Ended, Job, Producer
from producer.connection import connect
from producer.cursor import EventCursor
from producer.keys import Keys
from worker.thread_env import THREAD_ENV

WAYS = ("process", "thread", "alone")
THREAD_MAY_COST = 0.05
LOOK_EVERY_S = 0.05
STALLED_AFTER_S = 120.0
QUEUE = "default"


class Failed(BenchError):
    """A run did not come to its end; says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("loop", __doc__, runs=3)
    parser.add_argument("--model", choices=("small", "demo"), help="only this one; both by default")
    parser.add_argument("--tokens", type=int, default=400, help="of each job (%(default)s)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.tokens, given.rows, given.model = 1, 200, min(given.rows, 4), given.model or "demo"
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    print(f"{redis_server.find()}")
    print(f"{given.threads} threads of the engine, bfloat16, {given.rows} rows of {given.tokens} tokens each")
    measured = [_measure(name, given) for name in ([given.model] if given.model else ["small", "demo"])]
    settings = {name: getattr(given, name) for name in ("runs", "threads", "rows", "backend", "tokens", "quick")}
    print(f"\nJSON: {report.keep('loop', machine, settings, {'models': measured}, save=given.save)}")
    return 0


def _measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """All ways on one model, in turns; prints the table."""
    model = models.random_llama(given.cache) if name == "small" else ROOT / "ops" / "demo" / "model"
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    turns = deque(WAYS)
    # One after the other; but where nothing is measured, side by side, since most of a run is the worker's imports.
    with ThreadPoolExecutor(len(WAYS) if given.quick else 1) as pool:
        for turn in range(given.runs):
            for way, found in zip(turns, pool.map(lambda way: _run(way, model, given), turns), strict=True):
                runs[way].append(found)
                said = f"{name}: {way}, run {turn + 1} of {given.runs}: {found['step_ms']:.2f} ms a step"
                print(said, file=sys.stderr)
            turns.rotate(1)
    medians = {way: statistics.median(run["step_ms"] for run in several) for way, several in runs.items()}
    costs = medians["thread"] / medians["process"] - 1
    print(f"\n{name}: {model.name}\n\n{_table(runs, medians)}\n\n{_verdict(costs)}", flush=True)
    return {"model": model.name, "thread_costs": round(costs, 4), "step_ms": medians, "runs": runs}


def _run(way: str, model: Path, given: argparse.Namespace) -> dict[str, float]:
    """One worker's life. Raises Failed."""
    words = ("rows", "threads", "backend", "tokens")
    flags = [f"--{word}={getattr(given, word)}" for word in words]
    with redis_server.start() as server:
        flags += [f"--way={way}", f"--model={model}", f"--redis={server.url}"]
        for name, value in THREAD_ENV.items():  # all ways alike: else the threads' waiting is what is compared
            os.environ.setdefault(name, value)
        with Program("ops.bench.loop_worker", *flags, stdout=subprocess.PIPE) as program:
            found = {} if way == "alone" else _stream(server.url, program, given)
            assert program.process.stdout is not None
            said = program.process.stdout.read()
    if not said:
        raise Failed(f"the worker ({way}) ended with exit code {program.process.wait()}; why stands above")
    return {**_stretch([tuple(sample) for sample in json.loads(said)], given.rows), **found}


def _stream(url: str, program: Program, given: argparse.Namespace) -> dict[str, float]:
    """Have a worker answer jobs in all rows, once to warm up and once in earnest, then stop it. Raises Failed."""
    for tokens in (warm_up_tokens(given.tokens), given.tokens):
        sampling = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        jobs = [
            Job.model_validate({"prompt_token_ids": prompt, "sampling": sampling}) for prompt in prompts(given.rows)
        ]
        began = time.perf_counter()
        with Producer(url, queue=QUEUE) as producer:
            producer.submit_many(jobs)
        _follow(url, [job.id for job in jobs], tokens, program)
        seconds = time.perf_counter() - began
    program.process.send_signal(signal.SIGTERM)
    return {"tokens_per_s": given.rows * given.tokens / seconds}


def _follow(url: str, jobs: list[str], tokens: int, program: Program) -> None:
    """Read all jobs to their ends over one connection, as they come. Raises Failed."""
    cursors = {Keys(QUEUE).tokens(job).encode(): EventCursor() for job in jobs}
    heard = time.monotonic()
    with connect(url) as redis:
        while cursors:
            replies = _read(redis, cursors)
            heard = time.monotonic() if replies else heard
            code = program.process.poll()
            if code is not None:
                raise Failed(f"the worker ended with exit code {code} before its jobs had; why may stand above")
            if time.monotonic() - heard > STALLED_AFTER_S:
                raise Failed(f"no token for {STALLED_AFTER_S:.0f} s, and {len(cursors)} jobs have not ended")
            for stream, entries in replies:
                for event in cursors[stream].events(entries):
                    if isinstance(event, Ended) and (event.reason != "length" or cursors[stream].offset != tokens):
                        raise Failed(f"a job ended as {event.reason} after {cursors[stream].offset} of {tokens} tokens")
                if cursors[stream].ended:
                    del cursors[stream]
            time.sleep(LOOK_EVERY_S)


def _read(redis: sync_redis.Redis, cursors: dict[bytes, EventCursor]) -> list[Any]:
    streams: dict[Any, Any] = {stream: cursor.last_entry for stream, cursor in cursors.items()}
    replies: Any = redis.xread(streams)
    return list(replies)


def _stretch(samples: Sequence[Sample], rows: int) -> dict[str, float]:
    """The mean step of the longest stretch in which every row decodes and nothing else is computed. Raises Failed."""
    stretches: list[list[Sample]] = [[]]
    for before, after in pairwise(samples):
        steps, row_steps, computed = (after[at] - before[at] for at in (1, 2, 3))
        if row_steps == computed == rows * steps:
            stretches[-1] = [*(stretches[-1] or [before]), after]
        elif stretches[-1]:
            stretches.append([])
    longest = max(stretches, key=len)
    if not longest:
        raise Failed(f"there was no step in which all {rows} rows decoded: give more --tokens")
    first, last = longest[0], longest[-1]
    seconds, steps = last[0] - first[0], last[1] - first[1]
    return {"step_ms": 1000 * seconds / steps, "steps": steps, "receiver_cores": (last[4] - first[4]) / seconds}


def _table(runs: dict[str, list[dict[str, float]]], medians: dict[str, float]) -> str:
    rows = [
        [
            way,
            report.spread([run["step_ms"] for run in several]),
            f"{medians[way] / medians['process']:.3f}",
            *(_median(several, name, digits) for name, digits in (("receiver_cores", 2), ("tokens_per_s", 0))),
        ]
        for way, several in runs.items()
    ]
    return report.table(["Redis half", "ms a step", "ratio", "CPU of its process, cores", "tokens/s read"], rows)


def _median(runs: list[dict[str, float]], name: str, digits: int) -> str:
    return f"{statistics.median(run[name] for run in runs):.{digits}f}" if name in runs[0] else ""


def _verdict(costs: float) -> str:
    said = f"With a thread a step takes {abs(costs):.1%} {'longer' if costs > 0 else 'less'} than with a process"
    if costs < THREAD_MAY_COST:
        return f"{said}: a thread would do (it may cost {THREAD_MAY_COST:.0%})."
    return f"{said}: it stays a process (a thread may cost {THREAD_MAY_COST:.0%})."
