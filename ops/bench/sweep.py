"""Cost as work grows: ms a step and tokens/s against width, context, queue length and the length of jobs.

width    rows that decode, 1 to 256, each with 128 tokens of context
context  8 rows that decode, each with 128 to 8,192 tokens of context
queue    sequences that wait for a row, 10 to 100,000: what adding one, a step, and cancelling one take beside them
length   jobs of 1 to 2,000 output tokens after prompts of 32, all 16 rows at once, prompts' steps included

Beside each measured time its floor (ceilings.py). For each curve its steepest piece is told, as the exponent of the
cost in what grows: 1 is proportional; above it the curve bends upward, and LOG.md has to say why. Every time is the
median of steps, but for `length`, which is the whole run's.

Exit codes: 0 measured, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import torch

from ops.bench import models, report
from ops.bench.ceilings import CpuCeilings, measured, shape_of
from ops.bench.charts import Line, Panel, draw
from ops.bench.kernel_cases import Model
from ops.bench.machine import BUSY_CORES, Machine, Others
from ops.bench.online import model_of
from ops.bench.workload import prompts_of
from worker.engine import Engine, SequenceParams

MAX_LEN = 8192 + 512
STEPS = 24  # of a median, after WARM ones
WARM = 4

Point = dict[str, float]
Work = tuple[float, float]  # bytes, operations of one step


@dataclass(frozen=True)
class Measured:
    """What took `seconds` a step with so many rows, and the steps' work: `steps` of them, one after another."""

    x: int
    seconds: float
    rows: int
    steps: list[Work]

    def point(self, ceilings: CpuCeilings) -> Point:
        """A step's time beside its floor; both the mean over the steps."""
        floor_s = sum(ceilings.floor_s(*work) for work in self.steps) / len(self.steps)
        return {
            "x": self.x,
            "ms": round(1000 * self.seconds, 4),
            "floor_ms": round(1000 * floor_s, 4),
            "over_floor": round(self.seconds / floor_s, 3),
            "tokens_per_s": round(self.rows / self.seconds, 1),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("sweep", __doc__, runs=1)
    parser.add_argument("--workload", choices=("small", "mid"), default="small", help="the model (%(default)s)")
    parser.add_argument("--part", choices=tuple(PARTS), action="append", help="only this one; may be given again")
    given = parser.parse_args(arguments)
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine, others = Machine.here(quick=given.quick), Others()
    print("\n".join(machine.lines()))
    torch.set_num_threads(given.threads)
    directory = models.with_length(model_of(given.workload, given.cache), MAX_LEN)
    ceilings, shape = measured(quick=given.quick), shape_of(directory)
    raw = {}
    for part in given.part or PARTS:
        raw[part] = PARTS[part](directory, shape, given)
        ceilings = ceilings.better(measured(quick=given.quick))
    found = {
        part: [one.point(ceilings) if isinstance(one, Measured) else one for one in several]
        for part, several in raw.items()
    }
    print(f"{shape.name}, {given.threads} threads, bfloat16; {ceilings.said()}\n")
    print("\n\n".join(_table(part, points) for part, points in found.items()), end="\n\n")
    slopes = {f"{part}, {key}": steepest(found[part], key) for part in found for key in _COSTS[part]}
    print("steepest pieces, exponents: " + "; ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))
    busy = others.cores()
    settings = {name: getattr(given, name) for name in ("threads", "backend", "quick")} | {"model": shape.name}
    body = {"ceilings": ceilings.plain(), "parts": found, "steepest": slopes, "others_cores": busy}
    path = report.keep(f"sweep-{given.workload}", machine, settings, body, save=given.save)
    if busy > BUSY_CORES:
        print(f"WARNING: other processes took {busy} cores: these figures say little")
    title = f"{shape.name}, {given.threads} threads of {machine.cpu}"
    print(
        f"picture: {draw(path.with_suffix('.png'), title, [p for part in found for p in _panels(part, found[part])])}"
    )
    print(f"JSON: {path}")
    return 0


def width(directory: Path, shape: Model, given: argparse.Namespace) -> Sequence[Point | Measured]:
    context = 128
    widths = (1, 2, 4) if given.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    engine = _engine(directory, given, widths[-1], widths[-1] * 16)
    points: list[Point | Measured] = []
    for rows in widths:
        step_s, at = _decoding(engine, rows, context, given)
        points.append(Measured(rows, step_s, rows, [shape.step(rows, at)]))
    return points


def context(directory: Path, shape: Model, given: argparse.Namespace) -> Sequence[Point | Measured]:
    rows = 2 if given.quick else 8
    contexts = (64, 128) if given.quick else (128, 256, 512, 1024, 2048, 4096, 8192)
    engine = _engine(directory, given, rows, rows * (contexts[-1] // 32 + 16))
    points: list[Point | Measured] = []
    for length in contexts:
        step_s, at = _decoding(engine, rows, length, given)
        points.append(Measured(length, step_s, rows, [shape.step(rows, at)]))
    return points


def queue(directory: Path, shape: Model, given: argparse.Namespace) -> Sequence[Point | Measured]:
    """Prompts of 16 tokens wait while 16 rows decode. No floor: what waits costs nothing that must be."""
    rows, rng, (prompt,) = 16, Random(1), prompts_of(1, 16)
    engine = _engine(directory, given, rows, rows * 64)
    for id_ in range(rows):
        engine.add(id_, prompt, SequenceParams(2000))
    _steps(engine, WARM)
    points, added = list[Point | Measured](), rows
    for waiting in (10, 100) if given.quick else (10, 100, 1_000, 10_000, 100_000):
        more = waiting - engine.num_waiting
        add_s = _seconds(partial(_add, engine, prompt, added, more)) / more
        added += more
        step_s = statistics.median(_steps(engine, WARM if given.quick else STEPS))
        last = rng.sample(range(added - more, added), min(more, 10))
        cancel_s = statistics.median(_seconds(partial(engine.cancel, id_)) for id_ in last)
        points.append(
            {
                "x": waiting,
                "ms": round(1000 * step_s, 4),
                "add_us": round(1e6 * add_s, 2),
                "cancel_us": round(1e6 * cancel_s, 2),
            }
        )
    return points


def length(directory: Path, shape: Model, given: argparse.Namespace) -> Sequence[Point | Measured]:
    rows, prompts = 16, prompts_of(16, 32)
    lengths = (1, 4) if given.quick else (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    engine = _engine(directory, given, rows, rows * 66)
    _run(engine, prompts, 8)
    points: list[Point | Measured] = []
    for tokens in lengths:
        repeats = max(1, min(10, 100 // tokens)) if not given.quick else 1
        wall_s = statistics.median(_run(engine, prompts, tokens) for _ in range(repeats))
        steps = [_prompts(shape, rows, 32), *(shape.step(rows, 32 + at) for at in range(1, tokens))]
        points.append(Measured(tokens, wall_s / tokens, rows, steps))
    return points


PARTS: dict[str, Callable[[Path, Model, argparse.Namespace], Sequence[Point | Measured]]] = {
    "width": width,
    "context": context,
    "queue": queue,
    "length": length,
}
_AXES = {
    "width": "rows that decode",
    "context": "tokens of context, 8 rows",
    "queue": "sequences that wait",
    "length": "output tokens of a job, 16 rows",
}
_COSTS = {"width": ["ms"], "context": ["ms"], "queue": ["ms", "add_us", "cancel_us"], "length": ["ms"]}


def steepest(points: list[Point], key: str) -> float:
    """The largest exponent of a cost between neighbours: the slope of the curve where both axes go by powers."""
    pairs = [(a, b) for a, b in pairwise(points) if a[key] > 0 and b[key] > 0]
    slopes = [math.log(b[key] / a[key]) / math.log(b["x"] / a["x"]) for a, b in pairs]
    return round(max(slopes), 3) if slopes else 0.0


def _engine(directory: Path, given: argparse.Namespace, rows: int, pages: int) -> Engine:
    """With the prefix cache: a row's longer prompt begins with its shorter one, which is not computed again."""
    return Engine.from_pretrained(
        directory,
        dtype="bfloat16",
        max_rows=rows,
        num_pages=pages,
        token_budget=max(512, rows),
        max_len=min(MAX_LEN, pages * 32),
        threads=given.threads,
        backend=given.backend,
        step_time_s=None,
        watermark=0.0,
        headroom=0.0,
    )


def _decoding(engine: Engine, rows: int, context: int, given: argparse.Namespace) -> tuple[float, int]:
    """(median seconds of a step in which `rows` rows decode, their context in the middle of the measured steps)."""
    steps = 4 if given.quick else STEPS
    ahead = (
        WARM + steps + rows * context // 256 + 16
    )  # tokens that the first row makes until the last has come, or more
    for row in range(rows):
        (prompt,) = prompts_of(1, context, seed=row + 1)
        engine.add(row, prompt, SequenceParams(min(engine.max_len - context, ahead)))
    while engine.num_waiting or engine.step().tokens != rows:
        engine.step()
    _steps(engine, WARM)
    took = _steps(engine, steps)
    assert engine.num_running == rows, "rows ended while they were measured"
    for row in range(rows):
        engine.cancel(row)
    return statistics.median(took), context + WARM + steps // 2


def _steps(engine: Engine, count: int) -> list[float]:
    return [_seconds(engine.step) for _ in range(count)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _add(engine: Engine, prompt: list[int], first: int, count: int) -> None:
    for id_ in range(first, first + count):
        engine.add(id_, prompt, SequenceParams(8))


def _run(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Seconds that all prompts take to their ends, of so many tokens each."""
    engine.forget_prefixes()
    began = time.perf_counter()
    for id_, prompt in enumerate(prompts):
        engine.add(id_, prompt, SequenceParams(tokens))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - began


def _prompts(shape: Model, rows: int, length: int) -> Work:
    """Of whole prompts in one step: in the last layer all but K and V, and the head, is needed of last tokens alone."""
    head = shape.hidden * shape.vocab
    layer = (shape.product_parameters - head) // shape.layers
    keys = 2 * shape.hidden * shape.kv_heads * shape.D
    of_all, of_last = (shape.layers - 1) * layer + keys, layer - keys + head
    attention = 4 * shape.layers * shape.heads * shape.D * length * (length + 1) // 2
    return 2 * shape.product_parameters, rows * (2 * length * of_all + 2 * of_last + attention)


def _table(part: str, points: list[Point]) -> str:
    if part == "queue":
        rows = [[f"{p['x']:,}", f"{p['ms']:.2f}", f"{p['add_us']:.1f}", f"{p['cancel_us']:.1f}"] for p in points]
        return report.table([_AXES[part], "ms a step", "µs to add one", "µs to cancel one"], rows)
    rows = [
        [f"{p['x']:,}", f"{p['ms']:.2f}", f"{p['floor_ms']:.2f}", f"{p['over_floor']:.2f}", f"{p['tokens_per_s']:.0f}"]
        for p in points
    ]
    return report.table([_AXES[part], "ms a step", "floor", "times the floor", "tokens/s"], rows)


def _panels(part: str, points: list[Point]) -> list[Panel]:
    x = [point["x"] for point in points]

    def line(label: str, key: str, scale: float = 1.0, *, dashed: bool = False) -> Line:
        return Line(label, x, [scale * point[key] for point in points], dashed)

    if part == "queue":
        lines = [
            line("a step", "ms"),
            line("to add one", "add_us", 1e-3),
            line("to cancel one", "cancel_us", 1e-3),
        ]
        return [Panel("beside a queue", _AXES[part], "ms", lines)]
    rows = [point["tokens_per_s"] * point["ms"] / 1000 for point in points]
    ceiling = Line("ceiling", x, [n / p["floor_ms"] * 1000 for n, p in zip(rows, points, strict=True)], dashed=True)
    return [
        Panel(
            f"a step, by {part}", _AXES[part], "ms", [line("measured", "ms"), line("floor", "floor_ms", dashed=True)]
        ),
        Panel(f"speed, by {part}", _AXES[part], "tokens/s", [line("measured", "tokens_per_s"), ceiling]),
    ]
