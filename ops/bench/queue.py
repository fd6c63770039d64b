"""The queue layer by itself: Redis, the Redis half of workers and readers, with an engine that computes nothing.

    throughput  jobs of one token, worked off by 1, 4 and 10 workers; with --peers beside arq, saq, streaq, taskiq-redis
                and Celery, whose job does nothing: the same machine, one run, the same Redis
    tokens      jobs of 200 tokens, as fast as the layer takes them and at a step of 20 ms; what Redis pays for 1,000
    latency     from submit to the first token and from publishing to reading, with 1, 100 and 1,000 readers
    publish     a step of 256 running jobs: what the engine's step thread pays, the Redis half, and Redis

No one's job does any work, so a rate says what a system costs, and nothing of what it would do. Ours keeps a stream
that can be read again from anywhere, fenced against a worker that comes back; that is in its figures. Needs a
redis-server, and for the peers pip.

Exit codes: 0 measured, 1 it could not be, 2 bad flags.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from ops import redis_server
from ops.bench import queue_latency, queue_publish, report
from ops.bench.machine import BUSY_CORES, Machine, Others
from ops.bench.queue_systems import PEERS, Slipstream, System
from ops.bench.queue_throughput import Throughput, measure

WORKERS = (1, 4, 10)
TOKENS = 200  # of a job of `tokens`
PUBLISH_JOBS = 256


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    return _bench(given)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.bench queue", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="of the bench, comma-separated (all)")
    names = [peer.name for peer in PEERS]
    parser.add_argument(
        "--peers", nargs="?", const=",".join(names), default="", help=f"beside ours, of {', '.join(names)}; alone: all"
    )
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)), help="how many, one after the other")
    parser.add_argument("--rows", type=int, default=64, help="jobs at once of each worker, all systems (%(default)s)")
    parser.add_argument("--jobs", type=int, default=5000, help="of a run of `throughput` (%(default)s)")
    parser.add_argument("--runs", type=int, default=1, help="of `throughput` and `tokens`; medians (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="little work: shows that it runs, measures nothing")
    parser.add_argument("--save", action="store_true", help="keep the JSON in ops/bench/results")
    given = parser.parse_args(arguments)
    for name, known in (("parts", list(PARTS)), ("peers", names)):
        words = [word for word in getattr(given, name).split(",") if word]
        if unknown := [word for word in words if word not in known]:
            parser.error(f"--{name}: there is no {unknown[0]!r}; there are {', '.join(known)}")
        setattr(given, name, words)
    try:
        given.workers = [int(word) for word in given.workers.split(",")]
    except ValueError:
        parser.error(f"--workers: expected numbers like 1,4,10; got {given.workers!r}")
    if min(given.workers) < 1 or given.rows < 1 or given.jobs < 100 or given.runs < 1:
        parser.error("--workers, --rows and --runs must be at least 1, --jobs at least 100")
    if given.quick:
        given.workers, given.jobs, given.runs = [1], 400, 1
    return given


def _bench(given: argparse.Namespace) -> int:
    systems: list[System] = [Slipstream()]
    for peer in PEERS:
        if peer.name in given.peers:
            peer.prepare()
            systems.append(peer)
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    print(redis_server.find())
    versions = {system.name: system.versions for system in systems}
    for name, used in versions.items():
        print(f"{name}: {' '.join(f'{package} {version}' for package, version in used.items())}")
    others = Others()
    # One after the other; but where nothing is measured, side by side: most of a part is its processes' imports.
    with ThreadPoolExecutor(len(PARTS) if given.quick else 1) as pool:
        found = dict(zip(given.parts, pool.map(lambda part: PARTS[part](given, systems), given.parts), strict=True))
    if others.cores() > BUSY_CORES * machine.cores:  # the systems' own processes are others, too
        print("The systems and whatever else ran took", others.cores(), "cores besides this process", file=sys.stderr)
    settings = {name: getattr(given, name) for name in ("parts", "peers", "workers", "rows", "jobs", "runs", "quick")}
    found["versions"] = {"redis-server": str(getattr(redis_server.find(), "version", "")), **versions}
    print(f"\nJSON: {report.keep('queue', machine, settings, found, save=given.save)}")
    return 0


def _throughput(given: argparse.Namespace, systems: list[System]) -> list[dict[str, Any]]:
    """Jobs/s of every system with every number of workers, the systems taking turns."""
    runs: dict[tuple[str, int], list[Throughput]] = {}
    for turn in range(given.runs):
        for workers in given.workers:
            for system in systems:
                one = measure(system, workers, given.jobs, given.rows)
                runs.setdefault((system.name, workers), []).append(one)
                said = f"throughput: {system.name}, {workers} workers, run {turn + 1}: {one.jobs_per_s:.0f} jobs/s"
                print(said, file=sys.stderr)
    found = []
    rows = []
    for (name, workers), several in runs.items():
        of_ours = _median(runs["slipstream", workers], "jobs_per_s")
        rows.append(
            [
                name,
                str(workers),
                report.spread([one.jobs_per_s for one in several], 0),
                f"{_median(several, 'jobs_per_s') / of_ours:.2f}",
                f"{_median(several, 'enqueued_per_s'):.0f}",
                f"{_median(several, 'redis_cpu_us'):.0f}",
            ]
        )
        found.append({"name": name, "workers": workers, "runs": [asdict(one) for one in several]})
    head = ["system", "workers", "jobs/s", "ratio", "enqueued/s", "Redis CPU us/job"]
    print(
        f"\nthroughput: {given.jobs} no-op jobs, {given.rows} at once a worker\n\n{report.table(head, rows)}",
        flush=True,
    )
    return found


def _tokens(given: argparse.Namespace, systems: list[System]) -> list[dict[str, Any]]:
    """Tokens/s of ours, unbound and at the pace of an engine."""
    tokens, found, rows = 20 if given.quick else TOKENS, [], []
    for step_ms in (None, queue_latency.STEP_MS):
        for workers in given.workers:
            # Each worker's rows twice over; at a pace each row is filled twice, and a run takes eight seconds.
            jobs = max(100, 2 * given.rows * workers)
            several = [measure(Slipstream(tokens, step_ms), workers, jobs, given.rows) for _ in range(given.runs)]
            rate = _median(several, "jobs_per_s") * tokens
            redis_ms = _median(several, "redis_cpu_us") / tokens
            pace = "as fast as it goes" if step_ms is None else f"a step each {step_ms:.0f} ms"
            rows.append([pace, str(workers), f"{rate:.0f}", f"{redis_ms:.2f}"])
            found.append(
                {
                    "step_ms": step_ms,
                    "workers": workers,
                    "tokens_per_s": round(rate),
                    "redis_cpu_ms_per_1000_tokens": round(redis_ms, 3),
                    "runs": [asdict(one) for one in several],
                }
            )
    head = ["engine", "workers", "tokens/s", "Redis CPU ms/1,000 tokens"]
    print(f"\ntokens: jobs of {tokens} tokens, {given.rows} rows a worker\n\n{report.table(head, rows)}", flush=True)
    return found


def _latency(given: argparse.Namespace, systems: list[System]) -> list[dict[str, Any]]:
    """Times to a reader, in ms."""
    quick = queue_latency.Load(readers=4, jobs=1, tokens=10, every=1, spread_s=0)
    measured = [queue_latency.measure(load) for load in ([quick] if given.quick else queue_latency.LOADS)]
    rows = [
        [
            str(one.readers),
            f"{one.tokens_per_s:.0f}",
            *(f"{p50:.1f}/{p99:.1f}" for p50, p99 in (one.first_token, one.from_flush, one.from_engine)),
        ]
        for one in measured
    ]
    head = ["readers", "tokens/s", "submit to first token", "flush to reader", "engine to reader"]
    print(f"\nlatency: p50/p99 in ms, one process of readers\n\n{report.table(head, rows)}", flush=True)
    return [asdict(one) for one in measured]


def _publish(given: argparse.Namespace, systems: list[System]) -> dict[str, Any]:
    """A step's price."""
    jobs, steps = (16, 20) if given.quick else (PUBLISH_JOBS, 400)
    one = queue_publish.measure(jobs, steps)
    step_us = queue_publish.STEP_S * 1e6
    rows = [["the engine's step thread: the message", f"{one.step_thread_us:.0f}", f"{one.step_thread_share:.2%}"]]
    half = {"text": "Redis half: tokens to text", "flush 1": "Redis half: a flush a step"}
    half["flush 2"] = "Redis half: a flush in two steps"
    for name, what in half.items():
        rows.append([what, f"{one.redis_half_us[name]:.0f}", f"{one.redis_half_us[name] / step_us:.1%}"])
    for name, what in (("flush 1", "Redis: a flush a step"), ("flush 2", "Redis: a flush in two steps")):
        rows.append([what, f"{one.redis_us[name]:.0f}", f"{one.redis_us[name] / step_us:.1%}"])
    head = [f"{jobs} running jobs, a token each", "CPU us a step", "of 20 ms"]
    print(f"\npublish\n\n{report.table(head, rows)}", flush=True)
    return {**asdict(one), "step_thread_share": one.step_thread_share}


PARTS: dict[str, Callable[[argparse.Namespace, list[System]], Any]] = {
    "throughput": _throughput,
    "tokens": _tokens,
    "latency": _latency,
    "publish": _publish,
}


def _median(several: Sequence[Throughput], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in several))
