"""Continuous batching against static batches on this engine: the same requests, the same kernels, the same rows.

What is compared is the scheduling alone. Requests are all there at the start, more of them than rows. A static batch
runs until its longest output has ended; a row that ended costs nothing until then, so only the fewer rows tell: a
server that pads them would lose more. Four spreads of output lengths, on the random model of 19M, whose outputs end at
their limits; the longest output bounds what any scheduling can do, and is told beside.

Exit codes: 0 measured, 1 a request failed, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ops.bench import models, report
from ops.bench.charts import Line, Panel, draw
from ops.bench.engine import same_tokens
from ops.bench.figures import Figures
from ops.bench.latencies import percentile
from ops.bench.machine import BUSY_CORES, Machine
from ops.bench.systems import OnEngine, Run
from ops.bench.workload import Request, Workload, equal_lengths, heavy_tailed, mixed_lengths, uniform_lengths
from worker.engine import Engine

SPREADS: dict[str, Callable[[int], list[Request]]] = {
    "equal": equal_lengths,
    "uniform": uniform_lengths,
    "as real traffic": mixed_lengths,
    "heavy-tailed": heavy_tailed,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("static", __doc__, runs=3)
    parser.add_argument(
        "--requests", type=report.at_least_1, default=192, help="of each spread of lengths (%(default)s)"
    )
    parser.set_defaults(rows=16)
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.requests, given.rows = 1, 4, 2
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    model = models.random_llama(given.cache)
    engine = Engine.from_pretrained(
        model,
        dtype="bfloat16",
        max_rows=given.rows,
        threads=given.threads,
        backend=given.backend,
        max_drafts=0,  # random weights repeat themselves as no text does
    )
    print(
        f"{model.name}, {given.threads} threads, bfloat16, backend {engine.backend}, {given.rows} rows, "
        f"{given.requests} requests at once; medians of {given.runs}\n"
    )
    OnEngine(engine).run(SPREADS["equal"](4 if given.quick else 4 * given.rows))  # to warm up
    spreads = []
    for name, draw_requests in SPREADS.items():
        requests = draw_requests(given.requests)
        if given.quick:
            requests = [Request(r.prompt[:16], min(r.max_tokens, 5)) for r in requests]
        spreads.append(_measure(Workload(name, model, requests), engine, given))
    print(_table(spreads))
    settings = {name: getattr(given, name) for name in ("runs", "threads", "rows", "backend", "requests", "quick")}
    path = report.keep("static", machine, settings, {"model": model.name, "spreads": spreads}, save=given.save)
    busiest = max(one["others_cores"] for spread in spreads for one in spread["systems"].values())
    if busiest > BUSY_CORES:
        print(f"WARNING: in one of the runs other processes took {busiest} cores: these figures say little")
    print(f"picture: {draw(path.with_suffix('.png'), _title(machine, given), _panels(spreads), columns=2)}")
    print(f"JSON: {path}")
    return 0


def _measure(workload: Workload, engine: Engine, given: argparse.Namespace) -> dict[str, Any]:
    """Both ways of running a spread, taking turns. Raises Wrong where one made other tokens than the other."""
    systems = {"continuous": OnEngine(engine), "static": OnEngine(engine, given.rows)}
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    turns = deque(systems.items())
    for _ in range(given.runs):
        for name, system in turns:
            runs[name].append(system.run(workload.requests))
        turns.rotate(1)
    same_tokens(workload, runs)
    found = {name: Figures.median([Figures.of(run) for run in several]) for name, several in runs.items()}
    whole = {name: [times[-1] for run in several for times in run.times] for name, several in runs.items()}
    paired = [static.wall_s / ours.wall_s for ours, static in zip(runs["continuous"], runs["static"], strict=True)]
    outputs = [request.max_tokens for request in workload.requests]
    return {
        **workload.describe(),
        "ratio": round(statistics.median(paired), 3),
        "ratios": [round(one, 3) for one in paired],
        "rows_ratio": round(found["continuous"].mean_rows / found["static"].mean_rows, 3),
        "longest_share": round(max(outputs) / (sum(outputs) / given.rows), 3),
        "systems": {
            name: {
                **found[name].plain(),
                "whole_p50_s": round(percentile(whole[name], 50), 3),
                "whole_p99_s": round(percentile(whole[name], 99), 3),
            }
            for name in systems
        },
        "rows_over_time": {name: _rows_over_time(several[-1]) for name, several in runs.items()},
    }


def _rows_over_time(run: Run) -> list[list[float]]:
    """[seconds, rows in use], at most 300 points."""
    at, points = 0.0, []
    for step in run.steps:
        points.append([round(at, 4), float(step.rows)])
        at += step.seconds
    return [*points[:: max(1, len(points) // 300)], [round(at, 4), 0.0]]


def _table(spreads: list[dict[str, Any]]) -> str:
    rows = []
    for spread in spreads:
        ours, static = spread["systems"]["continuous"], spread["systems"]["static"]
        lengths = spread["output_tokens"]
        rows.append(
            [
                spread["workload"],
                f"{lengths['min']}-{lengths['max']}, {lengths['median']:g}",
                f"{ours['tokens_per_s']:.0f}",
                f"{static['tokens_per_s']:.0f}",
                report.spread(spread["ratios"]),
                f"{ours['mean_rows']:.1f}",
                f"{static['mean_rows']:.1f}",
                f"{ours['whole_p50_s']:.2f}/{static['whole_p50_s']:.2f}",
                f"{100 * spread['longest_share']:.0f} %",
            ]
        )
    head = ["outputs", "tokens, median", "continuous tokens/s", "static", "ratio", "rows in use", "static"]
    return report.table([*head, "whole job p50 s", "longest"], rows) + (
        "\n\nlongest: the longest output's tokens, as a share of all tokens over the rows; above 100 % it alone decides"
    )


def _title(machine: Machine, given: argparse.Namespace) -> str:
    return f"Rows in use over time, {given.rows} rows, {given.requests} requests at once; {machine.cpu}"


def _panels(spreads: list[dict[str, Any]]) -> list[Panel]:
    return [
        Panel(
            f"{spread['workload']}: {spread['ratio']:.2f} times the tokens/s",
            "seconds",
            "rows in use",
            [
                Line(name, [point[0] for point in points], [point[1] for point in points])
                for name, points in spread["rows_over_time"].items()
            ],
            log="",
            steps=True,
        )
        for spread in spreads
    ]
