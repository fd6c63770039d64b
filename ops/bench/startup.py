"""From the start of a process to its first token, and the memory it takes: what a restart costs, what a model needs.

Each run is a process of its own, as a worker's engine is: it imports, loads and packs the weights, answers a prompt of
128 tokens, and then as many as fill its page pool. Beside it one that imports the same and nothing more. The C kernels
are in their cache, as they are from a machine's second start on; the model's files are in the system's memory after
the first run, which is not counted.

Exit codes: 0 measured, 1 a process failed, 2 bad flags.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.bench import models, report
from ops.bench.machine import BUSY_CORES, ROOT, Machine

_CHILD = """
import json, os, sys, time
def since_start():
    ticks = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    return float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
def resident():
    pages = open("/proc/self/statm").read().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 2**20  # without files that are mapped
from worker.engine import Engine, SequenceParams
found = {"imported_s": since_start(), "imported_mib": resident()}
model, threads, backend = sys.argv[1:]
if model:
    engine = Engine.from_pretrained(model, threads=int(threads), backend=backend, num_pages=80)
    found["loaded_s"] = since_start()
    for id in range(16):
        engine.add(id, [300 + id + at for at in range(128)], SequenceParams(8))  # 136 tokens: 5 pages of 32
        while id == 0 and not engine.step().emissions:
            pass
        found.setdefault("first_token_s", since_start())
    while engine.has_work:
        engine.step()
    found["answered_mib"] = resident()
    found["pool_mib"] = engine.describe()["pool_bytes"] / 2**20
print(json.dumps(found), flush=True)
os._exit(0)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("startup", __doc__, runs=5)
    parser.add_argument("--model", type=Path, help="another model's directory (default: the random one of 19M)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs = 1
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    model = given.model or models.random_llama(given.cache)
    weights_mib = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 2**20
    bare: list[dict[str, float]] = []
    whole: list[dict[str, float]] = []
    try:
        for turn in range(1 if given.quick else 0, given.runs + 1):  # turn 0 warms up, where something is measured
            for what, found in (("", bare), (str(model), whole)):
                run = _run(what, given)
                if turn:
                    found.append(run)
    except subprocess.CalledProcessError as error:
        print(f"bench: the process ended with exit code {error.returncode}:\n{error.stderr}", file=sys.stderr)
        return 1
    summary = _summary(bare, whole, weights_mib)
    print(f"\n{model.name}, weights of {weights_mib:.0f} MiB; medians of {given.runs} after one to warm up\n")
    print(_table(bare, whole))
    print(
        f"\nmemory above bare imports: {summary['above_imports_mib']:.0f} MiB, "
        f"{summary['above_imports_ratio']:.2f} times the weights and the page pool"
    )
    settings = {name: getattr(given, name) for name in ("runs", "threads", "backend", "quick")} | {"model": model.name}
    path = report.keep("startup", machine, settings, {**summary, "bare": bare, "whole": whole}, save=given.save)
    if machine.others_cores > BUSY_CORES:
        print(f"WARNING: other processes took {machine.others_cores} cores: these figures say little")
    print(f"JSON: {path}")
    return 0


def _run(model: str, given: argparse.Namespace) -> dict[str, float]:
    """What one process said. Raises CalledProcessError."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model, str(given.threads), given.backend],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 3) for name, value in found.items()}


def _summary(bare: list[dict[str, float]], whole: list[dict[str, float]], weights_mib: float) -> dict[str, Any]:
    above = _median(whole, "answered_mib") - _median(bare, "imported_mib")
    return {
        "first_token_s": _median(whole, "first_token_s"),
        "weights_mib": round(weights_mib, 1),
        "above_imports_mib": round(above, 1),
        "above_imports_ratio": round(above / (weights_mib + _median(whole, "pool_mib")), 3),
    }


def _table(bare: list[dict[str, float]], whole: list[dict[str, float]]) -> str:
    rows = [
        ["imported", *(report.spread([run["imported_s"] for run in found]) for found in (bare, whole))],
        ["weights packed", "", report.spread([run["loaded_s"] for run in whole])],
        ["first token", "", report.spread([run["first_token_s"] for run in whole])],
        ["MiB of its own", f"{_median(bare, 'imported_mib'):.0f}", f"{_median(whole, 'answered_mib'):.0f}"],
    ]
    return report.table(["seconds since the process began", "imports alone", "engine"], rows)


def _median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)
