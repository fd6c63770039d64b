"""The prefix cache: what it gives where prompts begin alike, and what it costs where none does.

Shared: prompts of one of four system prompts of 512 tokens and some of their own, with the cache and without, taking
turns. Not shared: the requests of `small`; what the cache costs there is far below what two runs differ by, so it is
the host's work that is compared, with the decoder's forward pass taken out, as a share of a whole run.

Exit codes: 0 measured, 1 a request failed, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from ops.bench import models, report
from ops.bench.figures import Figures
from ops.bench.machine import BUSY_CORES, Machine
from ops.bench.overhead import without_maths
from ops.bench.systems import OnEngine, Run
from ops.bench.workload import Request, Workload, mixed_lengths, shared_prefixes
from worker.engine import Engine

PREFIXES = 4
WITH, WITHOUT = "with the cache", "without"
HOST_RUNS = 5  # of a run's host work, for each measured run: they are short


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("prefix", __doc__, runs=5)
    parser.add_argument("--requests", type=report.at_least_1, default=64, help="all at once (%(default)s)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.requests = 1, 8
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    model = models.random_llama(given.cache)
    engines = {
        name: Engine.from_pretrained(
            model,
            dtype="bfloat16",
            max_rows=given.rows,
            threads=given.threads,
            backend=given.backend,
            prefix_cache=name == WITH,
            max_drafts=0,  # random weights repeat themselves as no text does
        )
        for name in (WITH, WITHOUT)
    }
    shared = Workload("shared", model, shared_prefixes(given.requests, PREFIXES, 64 if given.quick else 512))
    apart = Workload("not shared", model, mixed_lengths(given.requests))
    if given.quick:
        shared, apart = _cut(shared), _cut(apart)
    print(
        f"{model.name}, {given.threads} threads, bfloat16, backend {engines[WITH].backend}, {given.rows} rows, "
        f"{given.requests} requests at once; medians of {given.runs} after one to warm up\n"
    )
    found = [_measure(workload, engines, given) for workload in (shared, apart)]
    cost = _cost(apart, engines, 1 if given.quick else given.runs * HOST_RUNS, found[1]["ways"][WITH]["wall_s"])
    print(_table(found))
    print(
        f"\nwithout the maths, {apart.name}: {cost['host_ms'][WITH]:.1f} ms with the cache, "
        f"{cost['host_ms'][WITHOUT]:.1f} without: {100 * cost['share']:.2f} % of the whole run"
    )
    settings = {name: getattr(given, name) for name in ("runs", "threads", "rows", "backend", "quick")}
    body = {"model": model.name, "workloads": found, "cost_where_nothing_is_shared": cost}
    path = report.keep("prefix", machine, settings, body, save=given.save)
    busiest = max(way["others_cores"] for one in found for way in one["ways"].values())
    if busiest > BUSY_CORES:
        print(f"WARNING: in one of the runs other processes took {busiest} cores: these figures say little")
    print(f"JSON: {path}")
    return 0


def _cut(workload: Workload) -> Workload:
    requests = [Request(r.prompt[:80], min(2, r.max_tokens)) for r in workload.requests]
    return Workload(workload.name, workload.model, requests)


def _measure(workload: Workload, engines: dict[str, Engine], given: argparse.Namespace) -> dict[str, Any]:
    """Both engines on a workload, taking turns: medians, and the hit rate of the one with the cache."""
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    hits: list[float] = []
    for turn in range(given.runs + 1):
        for name, engine in engines.items():
            before = engine.load()
            run = OnEngine(engine).run(workload.requests)
            after = engine.load()
            if turn:
                runs[name].append(run)
            if turn and name == WITH:
                admitted = after["admitted_tokens"] - before["admitted_tokens"]
                hits.append((after["cached_tokens"] - before["cached_tokens"]) / admitted)
    pairs = zip(runs[WITH], runs[WITHOUT], strict=True)
    return {
        **workload.describe(),
        "hit_rate": round(statistics.median(hits), 4),
        "speedups": [round(plain.wall_s / cached.wall_s, 3) for cached, plain in pairs],
        "ways": {
            name: {
                **Figures.median([Figures.of(run) for run in several]).plain(),
                "wall_s_runs": [round(run.wall_s, 3) for run in several],
            }
            for name, several in runs.items()
        },
    }


def _cost(workload: Workload, engines: dict[str, Engine], runs: int, wall_s: float) -> dict[str, Any]:
    """The host's work of a whole run, in ms, with the cache and without; the difference as a share of wall_s."""
    host: dict[str, list[float]] = {name: [] for name in engines}
    with without_maths():
        for turn in range(runs + 1):
            for name, engine in engines.items():
                run = OnEngine(engine).run(workload.requests)
                if turn:
                    host[name].append(1000 * run.wall_s)
    medians = {name: round(statistics.median(some), 2) for name, some in host.items()}
    share = (medians[WITH] - medians[WITHOUT]) / (1000 * wall_s)
    return {"host_ms": medians, "share": round(share, 5), "host_ms_runs": host}


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{one['workload']}, {name}",
            report.spread(way["wall_s_runs"]),
            f"{way['tokens_per_s']:.0f}",
            f"{100 * one['hit_rate']:.1f} %" if name == WITH else "",
            report.spread(one["speedups"]) if name == WITH else "",
            f"{way['first_token_p50_ms']:.0f}/{way['first_token_p99_ms']:.0f}",
        ]
        for one in found
        for name, way in one["ways"].items()
    ]
    head = ["prompts", "wall s", "output tokens/s", "hit rate", "times as fast", "first token p50/p99 ms"]
    return report.table(head, rows)
