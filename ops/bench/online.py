"""Requests that come one by one: what each waits for its first token, between its tokens, and altogether.

Arrivals are Poisson's, at a share (60 %) of the rate at which this engine answers the same requests when all are there
at once. So the engine has room, and what is measured is what a request feels of the others. Each run draws requests
and arrivals anew; the percentiles are over the requests of all runs. Times count from a request's arrival, whether or
not the engine was in the middle of a step then.

Exit codes: 0 measured, 1 a request failed, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.bench import models, report
from ops.bench.charts import Line, Panel, draw
from ops.bench.engine import DEMO_MODEL
from ops.bench.latencies import CLASSES, Latencies, distribution
from ops.bench.machine import BUSY_CORES, Machine
from ops.bench.systems import OnEngine
from ops.bench.workload import Request, Workload, demo_jobs, mixed_lengths, poisson
from worker.engine import Engine

OFFLINE_RUNS = 2  # after one to warm up: the capacity needs no more digits than the arrivals' own noise leaves


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("online", __doc__, runs=3)
    parser.add_argument("--share", type=report.share, default=0.6, help="of the offline capacity (%(default)s)")
    parser.add_argument("--requests", type=report.at_least_1, default=192, help="of a run (%(default)s)")
    parser.add_argument("--workload", choices=("small", "demo", "mid"), help="only this one (default: small and demo)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.requests = 1, 6
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    print(
        f"{given.threads} threads, bfloat16, {given.rows} rows; {given.requests} requests a run, Poisson arrivals at "
        f"{100 * given.share:g} % of what the engine answers of them at once\n"
    )
    names = [given.workload] if given.workload else ["small", "demo"]
    felt: dict[str, Latencies] = {}
    measured = []
    for name in names:
        found, felt[name] = _measure(name, given)
        measured.append(found)
        print(_said(found), end="\n\n", flush=True)
    settings = {name: getattr(given, name) for name in ("runs", "threads", "rows", "backend", "share", "quick")}
    path = report.keep("online", machine, settings, {"workloads": measured}, save=given.save)
    busiest = max(run["others_cores"] for found in measured for run in found["runs"])
    if busiest > BUSY_CORES:
        print(f"WARNING: in one of the runs other processes took {busiest} cores: these figures say little")
    title = f"Poisson arrivals at {100 * given.share:g} % of the offline capacity, {machine.cpu}, {machine.cores} cores"
    print(f"picture: {draw(path.with_suffix('.png'), title, _panels(felt))}")
    print(f"JSON: {path}")
    return 0


def requests_of(name: str, count: int, seed: int, *, quick: bool) -> list[Request]:
    """A workload's requests: of the demo, or as `mixed_lengths` draws them."""
    if name == "demo":
        return demo_jobs(DEMO_MODEL, count, seed=seed, longest_answer=30 if quick else None)
    drawn = mixed_lengths(count, seed=seed)
    return [Request(r.prompt[:24], min(12, r.max_tokens)) for r in drawn] if quick else drawn


def model_of(name: str, cache: Path) -> Path:
    """The directory of the model `small`, `mid` or `demo`."""
    if name == "demo":
        return DEMO_MODEL
    return models.random_qwen(cache) if name == "mid" else models.random_llama(cache)


def _measure(name: str, given: argparse.Namespace) -> tuple[dict[str, Any], Latencies]:
    """Capacity and latencies of one workload, for JSON and for the picture. Raises Wrong."""
    model = model_of(name, given.cache)
    engine = Engine.from_pretrained(
        model, dtype="bfloat16", max_rows=given.rows, threads=given.threads, backend=given.backend
    )
    system, felt = OnEngine(engine), Latencies()
    requests = requests_of(name, given.requests, 1, quick=given.quick)
    at_once = [system.run(requests) for _ in range(OFFLINE_RUNS + 1)][1:]
    capacity = len(requests) / statistics.median(run.wall_s for run in at_once)
    runs = []
    for seed in range(1, given.runs + 1):
        drawn = requests_of(name, given.requests, seed, quick=given.quick)
        arrivals = poisson(len(drawn), given.share * capacity, seed=seed)
        run = system.run(drawn, arrivals)
        own = Latencies()
        for into in (own, felt):
            into.add(run, arrivals)
        last = {"wall_s": round(run.wall_s, 3), "last_arrival_s": round(arrivals[-1], 3)}
        runs.append({**last, "mean_rows": round(run.mean_rows, 2), "others_cores": run.others_cores, **own.plain()})
    return {
        **Workload(name, model, requests).describe(),
        "backend": engine.backend.value,
        "capacity_requests_per_s": round(capacity, 3),
        "rate_requests_per_s": round(given.share * capacity, 3),
        **felt.plain(),
        "jobs": {name: len(values) for name, values in felt.whole.items()},
        "runs": runs,
    }, felt


def _said(found: dict[str, Any]) -> str:
    """The workload and its tables."""
    head = (
        f"{found['workload']}: {found['model']}, {found['parameters'] / 1e6:.2f}M parameters, backend "
        f"{found['backend']}; {found['requests']} requests of {found['prompt_tokens']['sum']} prompt tokens; "
        f"{found['capacity_requests_per_s']:.1f} requests/s at once, {found['rate_requests_per_s']:.1f} arriving; "
        f"{statistics.median(run['mean_rows'] for run in found['runs']):.1f} rows in use"
    )
    rows = []
    for what, name in (("first token", "first_token"), ("gap between tokens", "gap")):
        rows.append([what, *_cells(found, name)])
    for name, most in CLASSES.items():
        if found["jobs"][name]:
            bound = f"to {most}" if most else "longer"
            rows.append([f"whole job, {name} ({bound}, {found['jobs'][name]})", *_cells(found, f"whole_{name}")])
    return f"{head}\n\n{report.table(['ms', 'p50', 'p99', 'p99 of each run'], rows)}"


def _cells(found: dict[str, Any], name: str) -> list[str]:
    each = [run[f"{name}_p99_ms"] for run in found["runs"] if f"{name}_p99_ms" in run]
    return [f"{found[f'{name}_p50_ms']:.1f}", f"{found[f'{name}_p99_ms']:.1f}", report.spread(each, 1)]


def _panels(felt: dict[str, Latencies]) -> list[Panel]:
    """Distributions: of first tokens and gaps, a line a workload; of whole jobs, a panel a workload."""

    def lines(values: dict[str, list[float]]) -> list[Line]:
        return [Line(name, *distribution(some)) for name, some in values.items() if some]

    panels = [
        Panel("time to first token", "ms", "share of jobs", lines({n: f.first for n, f in felt.items()}), "x", True),
        Panel("gap between tokens", "ms", "share of gaps", lines({n: f.gaps for n, f in felt.items()}), "x", True),
    ]
    for name, one in felt.items():
        panels.append(Panel(f"whole job, {name}", "ms", "share of jobs", lines(one.whole), "x", True))
    return panels
