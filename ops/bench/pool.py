"""A page pool of half of what a workload needs at its peak: what admitting more than surely fits gains, and costs.

Clients set max_tokens with room to spare, and most outputs end long before. Who reserves max_tokens for everyone never
computes anything twice and leaves most pages unused; who admits whatever fits now runs out and computes much twice.
This engine leaves head-room that rises when pages run out and decays (worker/engine/headroom.py); the other two
policies are its head-room held at all and at nothing, in this process only. The same requests for all, there at the
start: outputs as real traffic has them, ended as by a stop string, each with max_tokens of 512. The peak is measured
with pages for everyone.

Exit codes: 0 measured, 1 a request failed, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.bench import models, report
from ops.bench.charts import Line, Panel, draw
from ops.bench.machine import BUSY_CORES, Machine
from ops.bench.systems import OnEngine, Run, Wrong
from ops.bench.workload import Request, Workload, mixed_lengths
from worker.engine import Engine, EngineConfig, SequenceParams
from worker.engine.headroom import Headroom

MAX_TOKENS = 512
OURS, RESERVING, GREEDY = "head-room (the default)", "reserves max_tokens", "admits what fits"
POLICIES: dict[str, dict[str, Any]] = {
    OURS: {},
    RESERVING: {"watermark": 0.0, "headroom": 1.0},
    GREEDY: {"watermark": 0.0, "headroom": 0.0},
}


@dataclass(frozen=True)
class Policy:
    """A policy's engine and what its runs brought."""

    engine: Engine
    runs: list[Run]
    counts: list[dict[str, int]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("pool", __doc__, runs=3)
    parser.add_argument("--requests", type=report.at_least_1, default=192, help="all at once (%(default)s)")
    parser.add_argument("--share", type=report.share, default=0.5, help="of the peak's pages (%(default)s)")
    parser.add_argument("--no-prefix-cache", action="store_true", help="the preempted find nothing of theirs again")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.requests, given.rows = 1, 8, 4
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    model = models.random_llama(given.cache)
    workload = Workload("small", model, _requests(given))
    ample = _engine(model, given)
    peak = _peak_pages(ample, workload.requests)
    longest = max(len(r.prompt) + MAX_TOKENS for r in workload.requests)
    pages = max(int(given.share * peak), -(-longest // ample.config.page_size))
    print(
        f"{model.name}, {given.threads} threads, bfloat16, backend {ample.backend}, {given.rows} rows; "
        f"{given.requests} requests at once, max_tokens {MAX_TOKENS} each; peak {peak} pages, pool {pages}; medians of "
        f"{given.runs}\n"
    )
    policies = {name: Policy(_engine(model, given, pages, settings), [], []) for name, settings in POLICIES.items()}
    for turn in range(given.runs + 1):
        for name, policy in policies.items():
            run, counts = _run(name, policy.engine, workload.requests)
            if turn:
                policy.runs.append(run)
                policy.counts.append(counts)
    found = [_judged(name, policy) for name, policy in policies.items()]
    print(_table(found))
    settings = {name: getattr(given, name) for name in ("runs", "threads", "rows", "backend", "share", "quick")}
    body = {**workload.describe(), "peak_pages": peak, "num_pages": pages, "policies": found}
    path = report.keep("pool", machine, settings, body, save=given.save)
    busiest = max(run.others_cores for policy in policies.values() for run in policy.runs)
    if busiest > BUSY_CORES:
        print(f"WARNING: in one of the runs other processes took {busiest} cores: these figures say little")
    title = f"{pages} pages where {peak} would be used, {given.requests} requests at once; {machine.cpu}"
    print(f"picture: {draw(path.with_suffix('.png'), title, [_panel(policies)])}")
    print(f"JSON: {path}")
    return 0


def _requests(given: argparse.Namespace) -> list[Request]:
    most = 6 if given.quick else MAX_TOKENS
    return [
        Request(r.prompt[: 40 if given.quick else None], MAX_TOKENS, ends_after=min(most, r.max_tokens))
        for r in mixed_lengths(given.requests)
    ]


def _engine(
    model: Path, given: argparse.Namespace, num_pages: int | None = None, settings: dict[str, Any] | None = None
) -> Engine:
    """The model's engine, with a pool of num_pages; None: as many as all rows could need."""
    config = EngineConfig(
        dtype="bfloat16",
        max_rows=given.rows,
        threads=given.threads,
        backend=given.backend,
        num_pages=num_pages,
        prefix_cache=not given.no_prefix_cache,
        max_drafts=0,  # random weights repeat themselves as no text does
        **(settings or {}),
    )
    return Engine.from_pretrained(model, config)


def _peak_pages(engine: Engine, requests: list[Request]) -> int:
    """The most pages that the requests hold at once where there are enough for all."""
    peak, params = 0, [SequenceParams(max_tokens=r.ends_after or r.max_tokens) for r in requests]
    for index, request in enumerate(requests):
        engine.add(index, request.prompt, params[index])
    total = engine.num_free_pages
    while engine.has_work:
        engine.step()
        peak = max(peak, total - engine.num_free_pages)
    return peak


def _run(name: str, engine: Engine, requests: list[Request]) -> tuple[Run, dict[str, int]]:
    """A run under a policy, and what the engine counted meanwhile."""
    before = engine.load()
    if name == OURS:
        run = OnEngine(engine).run(requests)
    else:
        with held_headroom():
            run = OnEngine(engine).run(requests)
    engine.check()
    after = engine.load()
    return run, {key: after[key] - before[key] for key in ("preemptions", "recomputed_tokens", "computed_tokens")}


@contextmanager
def held_headroom() -> Iterator[None]:
    """Within it, the head-room's share stays what it is: a policy to measure against, which no engine offers."""
    real = Headroom.step
    Headroom.step = lambda self, *, preempted: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Headroom.step = real  # type: ignore[method-assign]


def _judged(name: str, policy: Policy) -> dict[str, Any]:
    """A policy's medians. Raises Wrong if an output has another length than it must."""
    generated = [sum(map(len, run.token_ids)) for run in policy.runs]
    if len(set(generated)) > 1:
        raise Wrong(f"{name}: {generated} tokens, expected the same in every run")
    speeds = [tokens / run.wall_s for tokens, run in zip(generated, policy.runs, strict=True)]
    recomputed = [counts["recomputed_tokens"] for counts in policy.counts]
    return {
        "policy": name,
        "output_tokens": generated[0],
        "tokens_per_s": round(statistics.median(speeds), 1),
        "tokens_per_s_runs": [round(one, 1) for one in speeds],
        "mean_rows": round(statistics.median(run.mean_rows for run in policy.runs), 2),
        "preemptions": statistics.median(counts["preemptions"] for counts in policy.counts),
        "recomputed_tokens": statistics.median(recomputed),
        "recomputed_share": round(statistics.median(recomputed) / generated[0], 4),
    }


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            one["policy"],
            report.spread(one["tokens_per_s_runs"], 0),
            f"{one['mean_rows']:.1f}",
            f"{one['preemptions']:g}",
            f"{100 * one['recomputed_share']:.1f} %",
        ]
        for one in found
    ]
    return report.table(["policy", "tokens/s", "rows in use", "preemptions", "computed again, of generated"], rows)


def _panel(policies: dict[str, Policy]) -> Panel:
    lines = []
    for name, policy in policies.items():
        at, x, y = 0.0, list[float](), list[float]()
        for step in policy.runs[-1].steps:
            x.append(at)
            y.append(step.rows)
            at += step.seconds
        lines.append(Line(name, [*x, at], [*y, 0]))
    return Panel("rows in use over time", "seconds", "rows", lines, log="", steps=True)
