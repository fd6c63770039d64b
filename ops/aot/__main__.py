"""`make aot`, `python -m ops.aot`: every Triton kernel compiled to machine code for four GPUs, without one.

What a launcher would launch is recorded, with the dtypes and alignments it would have, and compiled for each target.
The table says what the compiler made of it; the bounds that tests/aot asserts are asserted here over the full matrix.

cases.py     the launches: true shapes of Llama-3.1-8B and Qwen3, every option once
record.py    what a launcher launches
compiled.py  a launch compiled, and what there is to know of the result
bounds.py    what must hold of it
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is defined: interpreted ones can't be compiled

from kernels.gpu.architectures import Architecture
from ops.aot.bounds import broken
from ops.aot.cases import CASES, QUICK
from ops.aot.compiled import Compiled, compile_case, new_in_each


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and say which bounds don't hold. Returns 1 if any doesn't."""
    parser = argparse.ArgumentParser(prog="python -m ops.aot", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the cases that `make test` compiles")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--target", choices=list(Architecture), action="append", help="all four unless given")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    given = parser.parse_args(arguments)
    names = [name for name in CASES if given.only in name and (not given.quick or name in QUICK)]
    targets = [Architecture(target) for target in given.target or Architecture]
    began = time.monotonic()
    keys = {target: new_in_each(names, target) for target in targets}
    work = [(name, target, keys[target][at]) for at, name in enumerate(names) for target in targets]
    found: list[Compiled] = []
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        for some in pool.map(compile_case, *zip(*work, strict=True)):
            found += some
            for one in some:
                print(one.line(), flush=True)
    print(f"{len(found)} compilations in {time.monotonic() - began:.0f} s")
    if given.json:
        given.json.write_text(json.dumps([one.plain() for one in found], indent=1) + "\n")
    wrong = [f"{one.name} on {one.target}: {what}" for one in found for what in broken(one)]
    print("\n".join(wrong) or "all bounds hold")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
