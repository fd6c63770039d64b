"""Microseconds that a step takes around the maths: planning, the flat batch, sampling, advancing every row.

The decoder's forward pass is replaced, in this process only, by one that answers at once with another token in each
step, so what is left is the host's own work (and sampling, which is part of the step). At width 1 and at the width of
all rows, beside the whole step, with a profile of where the time goes. All rows decode, one token a step each: nothing
in their texts repeats itself, so lookups find nothing to guess, and the whole step is measured without them.

With --ahead rows lie on a device that answers at once, sampling and all, and nothing is brought over to it: what is
left is what a GPU's step costs the host, but for the calls into CUDA.

A profiler slows small functions down more than large ones: its shares say where to look, not what there is to gain.
"""

from __future__ import annotations

import argparse
import cProfile
import inspect
import pstats
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch
from ops.bench import models, report
from ops.bench.machine import ROOT, Machine
from worker.engine import ConfigError, Engine, EngineConfig, SequenceParams
from worker.engine.device_runner import DeviceRunner
from worker.engine.devices import HostDevice, Run
from worker.engine.step_shape import StepShape
from worker.models.decoder import Decoder

PROMPT_TOKENS = 32
WARM_UP_STEPS = 30
TOP = 14  # functions of the profile that are kept
LEAST_SHARE = 0.002  # parts below are left out

Function = tuple[str, int, str]  # as pstats names one: file, line, name


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("overhead", __doc__, runs=5)
    parser.add_argument("--steps", type=int, default=400, help="of a run (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 samples greedily (%(default)s)")
    parser.add_argument("--logprobs", type=int, help="ask for those of each token and of so many of the likeliest")
    parser.add_argument("--presence-penalty", type=float, default=0.0, help="other than 0 adjusts every row's logits")
    parser.add_argument("--ahead", action="store_true", help="rows on a device, steps launched one ahead, as on a GPU")
    parser.add_argument("--no-prefix-cache", action="store_true", help="full pages are not kept for others")
    parser.add_argument("--max-drafts", type=int, default=EngineConfig.max_drafts, help="0: no lookup (%(default)s)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.steps = 1, 20
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    engine, whole = (
        Engine.from_pretrained(
            models.random_llama(given.cache),
            dtype="bfloat16",
            max_rows=given.rows,
            threads=given.threads,
            backend=given.backend,
            max_drafts=drafts,
            ahead=given.ahead,
            prefix_cache=not given.no_prefix_cache,
        )
        for drafts in (given.max_drafts, 0)  # the random model repeats itself, and would decode several tokens a step
    )
    room = engine.max_len - PROMPT_TOKENS - WARM_UP_STEPS
    if given.steps * (given.runs + 1) > room:
        raise ConfigError(f"--steps: the model has room for {room} in all runs and the profile; give fewer")
    print(
        f"{given.threads} threads, bfloat16, backend {engine.backend}, temperature {given.temperature:g}; means over "
        f"{given.steps} steps, medians of {given.runs}\n"
    )
    widths = [_width(engine, whole, width, given) for width in sorted({1, given.rows})]
    print(_summary(widths))
    for found in widths:
        print(f"\nwidth {found['width']}: a step's parts, by the profiler\n\n{_parts(found)}")
        print(f"\nwidth {found['width']}: functions, by the time in themselves\n\n{_functions(found)}")
    names = "runs steps threads rows backend temperature logprobs presence_penalty max_drafts ahead".split()
    names += ["no_prefix_cache", "quick"]
    settings = {name: getattr(given, name) for name in names} | {"runs_on": engine.backend}
    print(f"\nJSON: {report.keep('overhead', machine, settings, {'widths': widths}, save=given.save)}")
    return 0


def _width(engine: Engine, plain: Engine, width: int, given: argparse.Namespace) -> dict[str, Any]:
    """Everything measured at one width: whole steps of `plain`, the host's work of `engine`."""
    params = SequenceParams(
        max_tokens=engine.max_len - PROMPT_TOKENS,
        temperature=given.temperature,
        logprobs=given.logprobs,
        presence_penalty=given.presence_penalty,
    )
    with decoding(plain, width, params):
        whole = [_us_a_step(plain, max(10, given.steps // 4)) for _ in range(given.runs)]
    with without_device() if given.ahead else without_maths(), decoding(engine, width, params):
        host = [_us_a_step(engine, given.steps) for _ in range(given.runs)]
        profile = cProfile.Profile()
        profile.runcall(_us_a_step, engine, given.steps)
    parts, functions = _profiled(profile)
    return {
        "width": width,
        "host_us": round(statistics.median(host), 1),
        "host_us_runs": [round(one, 1) for one in host],
        "step_us": round(statistics.median(whole), 1),
        "step_us_runs": [round(one, 1) for one in whole],
        "parts": parts,
        "functions": functions[:TOP],
    }


@contextmanager
def without_maths() -> Iterator[None]:
    """Within it, a decoder's forward pass answers at once: [L, vocab], the model's dtype, the next id the likeliest."""
    real, zeros = Decoder.forward, dict[int, Tensor]()
    steps = count(1)

    def forward(
        self: Decoder, batch: FlatBatch, kv: Tensor, kv_scales: KvScales | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        wanted = len(batch.logits_index)
        if wanted not in zeros:
            zeros[wanted] = torch.zeros(wanted, self.config.vocab_size, dtype=self.dtype)
        logits, step = zeros[wanted], next(steps)
        logits[:, (step - 1) % self.config.vocab_size] = 0.0
        logits[:, step % self.config.vocab_size] = 1.0
        return logits

    Decoder.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Decoder.forward = real  # type: ignore[method-assign]


@contextmanager
def without_device() -> Iterator[None]:
    """Within it, a device answers at once: each draw the same id, all sound. What is staged is packed, and let go."""
    run, flush = HostDevice.run, DeviceRunner._flush
    results = dict[StepShape, Tensor]()

    def answer(self: HostDevice, shape: StepShape, run: Run) -> Tensor:
        return results.setdefault(shape, torch.ones(2, shape.draws, dtype=torch.int64))

    def pack(self: DeviceRunner) -> None:
        self.state.staged()

    HostDevice.run, DeviceRunner._flush = answer, pack  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        HostDevice.run, DeviceRunner._flush = run, flush  # type: ignore[method-assign]


@contextmanager
def decoding(engine: Engine, width: int, params: SequenceParams) -> Iterator[None]:
    """Within it, `width` rows are past their prompts and decode for as long as anyone asks."""
    for row in range(width):
        engine.add(row, [300 + row] * PROMPT_TOKENS, params)
    for _ in range(WARM_UP_STEPS):
        engine.step()
    yield
    assert engine.num_running == width, "rows ended while they were measured"
    for row in range(width):
        engine.cancel(row)


def _us_a_step(engine: Engine, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return 1e6 * (time.perf_counter() - began) / steps


def _profiled(profile: cProfile.Profile) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(what Engine.step calls, with all that these call; every function by its own time), shares of the step."""
    stats: dict[Function, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    code = inspect.unwrap(Engine.step).__code__
    step: Function = (code.co_filename, code.co_firstlineno, code.co_name)
    steps, _, own_s, step_s, _ = stats[step]
    parts = [{"part": "step itself", "calls": 1.0, "share": own_s / step_s}]
    functions = []
    for function, (_, calls, in_itself_s, _, callers) in stats.items():
        name = _name(function)
        functions.append({"function": name, "calls": round(calls / steps, 2), "share": round(in_itself_s / step_s, 4)})
        if step in callers:
            called, _, _, altogether_s = callers[step]
            parts.append({"part": name, "calls": round(called / steps, 2), "share": round(altogether_s / step_s, 4)})
    return sorted((one for one in parts if one["share"] >= LEAST_SHARE), key=_by_share), sorted(
        functions, key=_by_share
    )


def _by_share(row: dict[str, Any]) -> float:
    return -float(row["share"])


def _name(function: Function) -> str:
    """A function as people find it: its file in this tree, or what a built-in calls itself."""
    file, line, name = function
    if file in ("~", ""):
        return name.strip("<>").removeprefix("built-in method ")
    path = Path(file)
    if "site-packages" in path.parts:
        return f"{'/'.join(path.parts[path.parts.index('site-packages') + 1 :])}:{line} {name}"
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{line} {name}"


def _summary(widths: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(found["width"]),
            report.spread(found["host_us_runs"], 0),
            f"{found['host_us'] / found['width']:.1f}",
            report.spread(found["step_us_runs"], 0),
            f"{100 * found['host_us'] / found['step_us']:.1f} %",
        ]
        for found in widths
    ]
    return report.table(["width", "µs a step without maths", "µs a row", "µs the whole step", "share"], rows)


def _parts(found: dict[str, Any]) -> str:
    rows = [[one["part"], f"{one['calls']:g}", f"{100 * one['share']:.1f} %"] for one in found["parts"]]
    return report.table(["part", "calls a step", "share"], rows)


def _functions(found: dict[str, Any]) -> str:
    rows = [[one["function"], f"{one['calls']:g}", f"{100 * one['share']:.1f} %"] for one in found["functions"]]
    return report.table(["function", "calls a step", "share"], rows)
