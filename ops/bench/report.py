"""What benches have in common around the measuring: flags, tables, and the JSON that is kept. Imports no torch."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ops.bench.machine import Machine

RESULTS = Path(__file__).parent / "results"


class BenchError(Exception):
    """A bench can't measure, or what it measured would mean nothing: why. `python -m ops.bench` ends with 1."""


def parser(bench: str, what: str | None, *, runs: int) -> argparse.ArgumentParser:
    """The flags that every bench has."""
    made = argparse.ArgumentParser(prog=f"python -m ops.bench {bench}", description=(what or "").partition("\n")[0])
    cores = len(os.sched_getaffinity(0))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipstream" / "bench"
    made.add_argument("--runs", type=at_least_1, default=runs, help="measured ones, after a warm-up (%(default)s)")
    made.add_argument("--threads", type=at_least_1, default=cores, help="of all systems alike (%(default)s)")
    made.add_argument("--rows", type=at_least_1, default=64, help="seats in the engine's batch (%(default)s)")
    made.add_argument("--backend", choices=("auto", "c", "torch"), default="auto", help="of the engine's operations")
    made.add_argument("--quick", action="store_true", help="little work: shows that it runs, measures nothing")
    made.add_argument("--save", action="store_true", help="keep the JSON in ops/bench/results")
    made.add_argument("--cache", type=Path, default=cache, help="directory of the random model (%(default)s)")
    return made


def at_least_1(given: str) -> int:
    """A flag's number of things."""
    value = int(given)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def share(given: str) -> float:
    """A flag's part of a whole."""
    value = float(given)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 1, got {value:g}")
    return value


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and what it lies between where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned for a terminal too: the first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def keep(bench: str, machine: Machine, settings: dict[str, Any], found: dict[str, Any], *, save: bool) -> Path:
    """Write a bench's JSON: kept under its device's name and date, or to a temporary file. Nothing is overwritten."""
    body = {
        "bench": bench,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": asdict(machine),
        "settings": settings,
        **found,
    }
    directory = RESULTS if save else Path(tempfile.mkdtemp(prefix="slipstream-bench-"))
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{machine.device}-{time.strftime('%Y-%m-%d')}-{bench}"
    path, again = directory / f"{name}.json", 1
    while path.exists():
        again += 1
        path = directory / f"{name}-{again}.json"
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path
