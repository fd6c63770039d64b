"""Each Triton kernel against the roofline: time, GB/s, TFLOP/s and the share of its floor.

On a GPU each kernel is first compared with its torch reference there, then timed. Results are written as they come, so
that a run cut short leaves what it has. Without a GPU the floors alone are printed, from the maker's figures: they are
predictions, and nothing here was measured then.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kernels.table import Backend, ops_for
from ops.bench import report
from ops.bench.device import DATA_SHEETS, Ceilings, measured_ceilings, provenance, seconds
from ops.bench.kernel_cases import FORMS, MODELS, Case, Model, cases

RELATIVE = 0.05  # of a result's greatest value: bf16 products whose sums run in different orders


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a kernel does not agree with its reference."""
    parser = argparse.ArgumentParser(prog="python -m ops.bench kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=DATA_SHEETS, default="h200", help="to predict for (%(default)s)")
    parser.add_argument("--model", choices=[m.name for m in MODELS], default=MODELS[0].name, help="(%(default)s)")
    parser.add_argument("--only", default="", help="kernels whose names hold this")
    parser.add_argument("--json", type=Path, help="where to write; ops/bench/results on a GPU unless given")
    given = parser.parse_args(arguments)
    model = next(m for m in MODELS if m.name == given.model)
    chosen = [case for case in cases(model) if given.only in case.name]
    if not chosen:
        parser.error(
            f"--only {given.only!r} is in no kernel's name; there are {', '.join(c.name for c in cases(model))}"
        )
    there = torch.cuda.is_available()
    ceilings = measured_ceilings() if there else DATA_SHEETS[given.device]
    print(
        f"{ceilings.device}: {ceilings.bytes_s / 1e12:.2f} TB/s, {ceilings.flop_s / 1e12:.0f} TFLOP/s "
        f"({'measured' if ceilings.measured else 'as its maker says: floors below are predictions'})\n"
    )
    path = given.json or (_path(ceilings) if there else None)
    found: list[dict[str, Any]] = []
    for case in chosen:
        found.append(_one(case, ceilings, there))
        print(_line(found[-1]), flush=True)
        _write(path, ceilings, model, found)
    print(f"\nfloors of a decode step of {model.name}, products and attention alone\n")
    print(_steps(model, ceilings))
    wrong = [one["name"] for one in found if one.get("agrees") is False]
    if wrong:
        print(f"bench: these differ from their references: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _one(case: Case, ceilings: Ceilings, there: bool) -> dict[str, Any]:
    floor = ceilings.floor_s(case.moved, case.flops / case.form.rate)
    one = {"name": case.name, "bytes": case.moved, "flops": case.flops, "floor_us": floor * 1e6}
    if not there:
        return one
    if case.form is FORMS["fp8"] and not torch.version.hip and torch.cuda.get_device_capability() < (8, 9):
        return one | {"left_out": "this GPU multiplies no FP8"}
    ops, reference = ops_for(Backend.TRITON), ops_for(Backend.TORCH)
    device = torch.device("cuda")
    call = case.make(device)
    ours, theirs = case.make(device)(ops).float(), case.make(device)(reference).float()
    if case.name.startswith("sample"):  # the draws of near-ties may differ
        agrees = bool((ours == theirs).float().mean() > 0.99)
    else:
        agrees = bool((ours - theirs).abs().max() <= RELATIVE * theirs.abs().max())
    took = seconds(lambda: call(ops))
    return one | {
        "agrees": agrees,
        "us": took * 1e6,
        "gb_s": case.moved / took / 1e9,
        "tflop_s": case.flops / took / 1e12,
        "of_floor": floor / took,
    }


def _line(one: dict[str, Any]) -> str:
    work = f"{one['bytes'] / 1e6:>9.2f} MB {one['flops'] / 1e9:>9.2f} GFLOP"
    said = f"{one['name']:<50} {work}  floor {one['floor_us']:>9.1f} us"
    if "us" not in one:
        return f"{said}  {one['left_out']}" if "left_out" in one else said
    state = "" if one["agrees"] else "  DIFFERS FROM ITS REFERENCE"
    return (
        f"{said}  took {one['us']:>9.1f} us {one['gb_s']:>7.0f} GB/s {one['tflop_s']:>6.1f} TFLOP/s "
        f"{one['of_floor']:>5.0%} of the floor{state}"
    )


def _steps(model: Model, ceilings: Ceilings) -> str:
    rows = []
    for name, form in FORMS.items():
        for width in (1, 16, 64, 256):
            floors = [ceilings.floor_s(*model.step(width, context, form)) * 1e3 for context in (512, 2048, 8192)]
            rows.append(["bf16" if name == "auto" else name, str(width), *(f"{floor:.2f} ms" for floor in floors)])
    return report.table(["weights", "rows", "context 512", "2,048", "8,192"], rows)


def _path(ceilings: Ceilings) -> Path:
    device = re.sub(r"[^a-z0-9]+", "-", ceilings.device.lower()).strip("-")
    return report.RESULTS / f"{device}-{time.strftime('%Y-%m-%d')}-kernels.json"


def _write(path: Path | None, ceilings: Ceilings, model: Model, found: list[dict[str, Any]]) -> None:
    if path is None:
        return
    body = {
        "bench": "kernels",
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **provenance(),
        "ceilings": asdict(ceilings),
        "model": model.name,
        "kernels": found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")
