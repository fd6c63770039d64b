"""Where a step's time goes on a GPU, by kernel, and the host's, by function: what to look at before changing anything.

Steady decodes of one model at some widths and one context, as `gpu_engine` times them. The device's side comes from
torch's profiler (graphs tell their kernels one by one), the host's from cProfile, which swells small functions.

Exit codes: 0 profiled, 1 there is no GPU or too few pages, 2 bad flags.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
from collections import defaultdict
from collections.abc import Sequence
from random import Random

import torch
from torch.profiler import ProfilerActivity, profile

from ops.bench import report
from ops.bench.gpu_engine import ROOM, engine_of, pretend_computed
from ops.bench.kernel_cases import MODELS
from worker.engine import Engine, SequenceParams

WARM_STEPS, STEPS = 10, 10
LISTED = 22


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench gpu_profile", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=[m.name for m in MODELS], default=MODELS[0].name, help="(%(default)s)")
    parser.add_argument(
        "--widths", type=report.at_least_1, nargs="+", default=[1, 64], help="rows of a step (%(default)s)"
    )
    parser.add_argument("--context", type=report.at_least_1, default=2048, help="tokens behind each row (%(default)s)")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu_profile: there is no GPU here, and nothing to profile", file=sys.stderr)
        return 1
    model = next(m for m in MODELS if m.name == given.model)
    engine = engine_of(model, max_rows=max(given.widths), max_len=given.context + ROOM, token_budget=4096)
    pretend_computed(engine)
    drawn = Random(1)
    for width in given.widths:
        needed = width * -(-(given.context + ROOM) // engine.config.page_size)
        if needed > engine.num_free_pages:
            raise report.BenchError(
                f"{width} rows of {given.context} take {needed} pages, {engine.num_free_pages} are free"
            )
        for row in range(width):
            prompt = [drawn.randrange(model.vocab) for _ in range(given.context)]
            engine.add(row, prompt, SequenceParams(ROOM, temperature=0.0))
        for _ in range(WARM_STEPS):
            engine.step()
        print(f"\n## {model.name}, {width} rows of {given.context}\n\n{_device(engine)}\n\n{_host(engine)}", flush=True)
        for row in range(width):
            engine.cancel(row)
        engine.forget_prefixes()
    return 0


def _device(engine: Engine) -> str:
    """Kernels of a step by their time, and how much of the span between first and last they fill."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(STEPS):
            engine.step()
        torch.cuda.synchronize()
    times, counts, first, last = defaultdict[str, float](float), defaultdict[str, int](int), float("inf"), 0.0
    for event in profiled.events():
        if event.device_type.name != "CUDA":
            continue
        times[event.name] += event.time_range.elapsed_us()
        counts[event.name] += 1
        first, last = min(first, event.time_range.start), max(last, event.time_range.end)
    busy = sum(times.values())
    rows = [
        [name[:90], f"{counts[name] / STEPS:.1f}", f"{times[name] / STEPS:.1f}", f"{times[name] / counts[name]:.2f}"]
        for name in sorted(times, key=lambda name: -times[name])[:LISTED]
    ]
    said = (
        f"{sum(counts.values()) / STEPS:.0f} kernels a step, {busy / STEPS:.0f} us of {(last - first) / STEPS:.0f}\n\n"
    )
    return said + report.table(["kernel", "a step", "us a step", "us each"], rows)


def _host(engine: Engine) -> str:
    """The host's functions by their own time."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(STEPS):
        engine.step()
    profiler.disable()
    rows = []
    found = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # there, but not in the stubs
    for (file, line, name), (_, calls, own, whole, _) in sorted(found.items(), key=lambda item: -item[1][2])[:LISTED]:
        where = f"{'/'.join(file.split('/')[-2:])}:{line} {name}" if line else name
        rows.append([where[:90], f"{calls / STEPS:.1f}", f"{1e6 * own / STEPS:.1f}", f"{1e6 * whole / STEPS:.1f}"])
    return report.table(["function", "a step", "own us", "with callees"], rows)
