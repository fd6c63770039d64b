"""This engine with continuous batching, beside transformers in static batches and beside itself in static batches.

The same requests on the same model, all there at the start, answered greedily in one dtype with the same number of
threads, in one process, the systems taking turns. Two workloads: `small`, lengths as real traffic has them on a random
Llama of 19M parameters, every output ending at its limit; `demo`, jobs of the demo on its model, ended by themselves.
Every system must make the same number of tokens, or its time would mean nothing. `small` has as many requests as there
are rows by default, so all of them in one static batch run as they do continuously.

Exit codes: 0 measured, 1 a system answered otherwise than it must, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ops.bench import models, report
from ops.bench.figures import Figures
from ops.bench.machine import BUSY_CORES, Machine
from ops.bench.systems import OnEngine, Run, System, Wrong
from ops.bench.workload import Request, Workload, demo_jobs, mixed_lengths
from worker.engine import Engine, EngineConfig

DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"
STATIC_BATCH = 16  # of transformers: on two cores 16 was its best (8 and 16 were tried)
BASELINE = f"transformers static {STATIC_BATCH}"
# Where outputs end by themselves, a tie in bf16 may fall differently in two systems, and with it an end.
ENDS_MAY_DIFFER = 0.01  # of all tokens


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    return _bench(given)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = report.parser("engine", __doc__, runs=3)
    parser.add_argument("--only", default="", help="systems whose names have one of these, comma-separated")
    parser.add_argument("--workload", choices=("small", "demo"), help="only this one")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of all systems")
    given = parser.parse_args(arguments)
    parts = [part.strip() for part in given.only.split(",") if part.strip()]
    names = [BASELINE, "slipstream", *(f"slipstream static {batch}" for batch in _static(given.rows))]
    given.systems = [name for name in names if not parts or any(part in name for part in parts)]
    if not given.systems:
        parser.error(f"--only {given.only}: no system is named like this; there are {', '.join(names)}")
    if given.quick:
        given.runs = 1
    return given


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    print(f"{given.threads} threads, {given.dtype}, greedy; medians of {given.runs} after a run to warm up\n")
    wanted = [given.workload] if given.workload else ["small", "demo"]
    measured = [_measure(_workload(name, given), given) for name in wanted]
    settings = {name: getattr(given, name) for name in ("runs", "threads", "rows", "backend", "dtype", "quick")}
    path = report.keep("engine", machine, settings, {"workloads": measured}, save=given.save)
    busiest = max(run["others_cores"] for found in measured for one in found["systems"] for run in one["runs"])
    if busiest > BUSY_CORES:
        print(f"WARNING: in one of the runs other processes took {busiest} cores: these figures say little")
    print(f"JSON: {path}")
    return 0


def _workload(name: str, given: argparse.Namespace) -> Workload:
    if name == "small":
        requests = mixed_lengths()
        if given.quick:
            requests = [Request(r.prompt[:24], min(12, r.max_tokens)) for r in requests[:6]]
        return Workload("small", models.random_llama(given.cache), requests)
    jobs = demo_jobs(DEMO_MODEL, 6, longest_answer=30) if given.quick else demo_jobs(DEMO_MODEL)
    return Workload("demo", DEMO_MODEL, jobs)


def _measure(workload: Workload, given: argparse.Namespace) -> dict[str, Any]:
    """Run every system on the workload, print the table; what there is of it for the JSON. Raises Wrong."""
    described = workload.describe()
    systems, backend = _systems(workload, given)
    runs: dict[str, list[Run]] = {system.name: [] for system in systems}
    turns = deque(systems)
    gc.collect()
    gc.freeze()  # each run collects what it left; looking at torch and transformers again took 0.2 s a run
    for turn in range(given.runs + 1):
        for system in turns:
            run = system.run(workload.requests)
            if turn:
                runs[system.name].append(run)
            print(f"{workload.name}: {system.name}, {_turn(turn, given.runs)}: {run.wall_s:.2f} s", file=sys.stderr)
        turns.rotate(1)
    gc.unfreeze()
    tokens = same_tokens(workload, runs)
    judged = _judge(workload, runs)
    lines = [_headline(described, backend), _table(judged, len(workload.requests)), tokens.pop("said")]
    print("\n\n".join(lines), end="\n\n", flush=True)
    return {**described, "backend": backend, **tokens, "systems": judged}


def _judge(workload: Workload, runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Each system's medians, its tokens/s as a multiple of the baseline's, and its runs."""
    found = {name: [Figures.of(run) for run in several] for name, several in runs.items()}
    medians = {name: Figures.median(several) for name, several in found.items()}
    baseline = medians[BASELINE].tokens_per_s if BASELINE in medians else None
    return [
        {
            "name": name,
            **medians[name].plain(),
            "ratio": None if baseline is None else round(medians[name].tokens_per_s / baseline, 3),
            **_exact(workload, runs[name]),
            "runs": [one.plain() for one in several],
        }
        for name, several in found.items()
    ]


def _systems(workload: Workload, given: argparse.Namespace) -> tuple[list[System], str]:
    """The systems asked for, and the backend that this engine runs on."""
    engine = Engine.from_pretrained(
        workload.model,
        dtype=given.dtype,
        max_rows=given.rows,
        threads=given.threads,
        backend=given.backend,
        max_drafts=0 if workload.fixed else EngineConfig.max_drafts,  # random weights repeat themselves as no text does
    )
    systems: list[System] = [OnEngine(engine), *(OnEngine(engine, batch) for batch in _static(given.rows))]
    if BASELINE in given.systems:
        from ops.bench.transformers_static import TransformersStatic

        systems.insert(0, TransformersStatic(workload.model, STATIC_BATCH, given.dtype))
    assert torch.get_num_threads() == given.threads, "the systems would not have the same threads"
    return [system for system in systems if system.name in given.systems], engine.backend.value


def _static(rows: int) -> list[int]:
    """The sizes of this engine's own static batches: that of transformers, and all its rows."""
    return sorted({min(STATIC_BATCH, rows), rows})


def same_tokens(workload: Workload, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Check that every run of every system made the same number of tokens. Raises Wrong."""
    lengths = [[len(ids) for ids in run.token_ids] for several in runs.values() for run in several]
    totals = [sum(one) for one in lengths]
    differing = sum(len(set(of_request)) > 1 for of_request in zip(*lengths, strict=True))
    if workload.fixed and any(one != [request.max_tokens for request in workload.requests] for one in lengths):
        raise Wrong(f"{workload.name}: outputs of {totals} tokens, expected the requests' own limits in every run")
    if max(totals) - min(totals) > ENDS_MAY_DIFFER * min(totals):
        raise Wrong(f"{workload.name}: {differing} outputs differ in length between systems; tokens: {totals}")
    said = f"Every system made {totals[0]} tokens in every run."
    if differing:
        said = (
            f"{min(totals)} to {max(totals)} tokens a run; outputs that differ in length between systems: {differing}."
        )
    return {"same_tokens": differing == 0, "outputs_differing_in_length": differing, "said": said}


def _exact(workload: Workload, several: list[Run]) -> dict[str, Any]:
    """How many answers were right to the character in the worst run, where there are right answers."""
    if any(request.answer is None for request in workload.requests):
        return {}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload.model)
    exact = [
        sum(
            tokenizer.decode([token for token in ids if token not in request.stop_ids]) == request.answer
            for ids, request in zip(run.token_ids, workload.requests, strict=True)
        )
        for run in several
    ]
    return {"exact_answers": min(exact)}


def _headline(described: dict[str, Any], backend: str) -> str:
    def lengths(name: str) -> str:
        found = described.get(f"{name}_tokens")
        if found is None:
            return f"{name}s until their own end"
        return f"{name}s of {found['min']} to {found['max']} tokens, median {found['median']:g}, {found['sum']} in all"

    return (
        f"{described['workload']}: {described['model']}, {described['parameters'] / 1e6:.2f}M parameters, backend "
        f"{backend}; {described['requests']} requests at once: {lengths('prompt')}; {lengths('output')}"
    )


def _table(judged: list[dict[str, Any]], requests: int) -> str:
    head = ["system", "wall s", "tokens/s", "ratio", "mean rows", "first token p50/p99 ms", "gap p50/p99 ms"]
    has_answers = "exact_answers" in judged[0]
    rows = [
        [
            one["name"],
            report.spread([run["wall_s"] for run in one["runs"]]),
            f"{one['tokens_per_s']:.0f}",
            "" if one["ratio"] is None else f"{one['ratio']:.2f}",
            f"{one['mean_rows']:.1f}",
            f"{one['first_token_p50_ms']:.0f}/{one['first_token_p99_ms']:.0f}",
            f"{one['gap_p50_ms']:.1f}/{one['gap_p99_ms']:.1f}",
            *([f"{one['exact_answers']}/{requests}"] if has_answers else []),
        ]
        for one in judged
    ]
    return report.table([*head, *(["exact"] if has_answers else [])], rows)


def _turn(turn: int, runs: int) -> str:
    return f"run {turn} of {runs}" if turn else "warm-up"
