"""Speculation by prompt lookup on and off: tokens/s of the same jobs, one engine with it beside one without, in turns.

Each pair of runs gives a ratio, and what else the machine does meanwhile falls on both. Workloads: kinds of tasks of
the demo's model, answered greedily until their own end: `repeat`, whose answers stand in the prompts; `reverse` and
`sort`, whose answers are made of what stands there, in another order; `others`, the other kinds. And `loop`: the random
model of `engine`, which falls into loops as greedy random weights do: the most there is to gain, and no real text; at
temperature 1 (`noise`) it says nothing twice. At each width so many jobs run at once. Both sides have to say the same
tokens.

Exit codes: 0 measured, 1 the sides said different tokens, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.bench import models, report
from ops.bench.machine import Machine
from ops.bench.workload import mixed_lengths
from worker.engine import Engine, SequenceParams

DEMO_MODEL = Path(__file__).parents[1] / "demo" / "model"
COPYING = ("repeat", "reverse", "sort")
WORKLOADS = (*COPYING, "others", "loop", "noise")
MAX_TOKENS = 120  # of an answer; longer ones are cut, on both sides
Job = tuple[list[int], SequenceParams]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("speculation", __doc__, runs=5)
    parser.add_argument("--widths", default="1,8,64", help="jobs at once, comma-separated (%(default)s)")
    parser.add_argument("--only", default="", help=f"workloads of {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--max-drafts", type=int, default=16, help="of the engine with it (%(default)s)")
    given = parser.parse_args(arguments)
    given.only = [name for name in given.only.split(",") if name]
    if unknown := [name for name in given.only if name not in WORKLOADS]:
        parser.error(f"--only: there is no {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    try:
        given.widths = [report.at_least_1(width) for width in given.widths.split(",")]
    except (ValueError, argparse.ArgumentTypeError):
        parser.error(f"--widths: expected numbers like 1,8,64; got {given.widths!r}")
    if given.quick:
        given.runs, given.widths = 1, [2]
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine = Machine.here(quick=given.quick)
    print("\n".join(machine.lines()))
    print(f"{given.threads} threads, bfloat16; medians of {given.runs} pairs of runs [least-most]\n")
    found = []
    for name in given.only or WORKLOADS:
        for width in given.widths:
            found.append(_compare(name, width, given))
            print(found[-1].pop("row"), flush=True)
    settings = {name: getattr(given, name) for name in ("runs", "threads", "backend", "widths", "max_drafts", "quick")}
    print(f"\nJSON: {report.keep('speculation', machine, settings, {'found': found}, save=given.save)}")
    return 0 if all(one["same_tokens"] for one in found) else 1


def _compare(name: str, width: int, given: argparse.Namespace) -> dict[str, Any]:
    """Pairs of runs of one workload at one width."""
    model = models.random_llama(given.cache) if name in ("loop", "noise") else DEMO_MODEL
    jobs = _jobs(name, max(2 if given.quick else 24, width))
    on, off = (
        Engine.from_pretrained(
            model, dtype="bfloat16", max_rows=width, threads=given.threads, backend=given.backend, max_drafts=drafts
        )
        for drafts in (given.max_drafts, 0)
    )
    gc.collect()
    gc.freeze()  # as a worker's engine does with what it has loaded
    ratios: list[float] = []
    rates: list[float] = []
    same = True
    for turn in range(given.runs + 1):
        gc.collect()
        pair = {}
        for engine in (on, off) if turn % 2 else (off, on):
            engine.forget_prefixes()
            began = time.perf_counter()
            said = [one.token_ids for one in engine.generate([prompt for prompt, _ in jobs], [own for _, own in jobs])]
            pair[engine] = time.perf_counter() - began, said
        same = same and pair[on][1] == pair[off][1]
        if turn:
            ratios.append(pair[off][0] / pair[on][0])
            rates.append(sum(map(len, pair[off][1])) / pair[off][0])
    gc.unfreeze()
    stats = on.stats
    drafted, accepted = stats.drafted_tokens, stats.accepted_tokens
    row = (
        f"{name:8} width {width:3}: {report.spread(ratios)} of {statistics.median(rates):.0f} tokens/s; "
        f"{drafted / stats.generated_tokens:.2f} drafted and {accepted / stats.generated_tokens:.2f} accepted a token; "
        f"{'the same tokens' if same else 'DIFFERENT TOKENS'}"
    )
    return {
        "workload": name,
        "width": width,
        "ratios": [round(one, 3) for one in ratios],
        "plain_tokens_per_s": round(statistics.median(rates), 1),
        "generated": stats.generated_tokens,
        "drafted": drafted,
        "accepted": accepted,
        "same_tokens": same,
        "row": row,
    }


def _jobs(name: str, count: int) -> list[Job]:
    """`count` jobs of a workload, the same in every run."""
    if name in ("loop", "noise"):
        return [
            (one.prompt, SequenceParams(min(MAX_TOKENS, one.max_tokens), temperature=float(name == "noise"), seed=at))
            for at, one in enumerate(mixed_lengths(count))
        ]
    from transformers import AutoTokenizer

    from ops.demo.evaluate import heldout_examples, prompt_ids
    from ops.demo.tasks import TASKS

    kinds = [name] if name in COPYING else [kind for kind in TASKS if kind not in COPYING]
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    params = SequenceParams(MAX_TOKENS, stop_ids=frozenset({tokenizer.eos_token_id}))
    examples = heldout_examples(-(-count // len(kinds)), 1, kinds)[:count]
    return [(prompt_ids(tokenizer, one.prompt, chat=True), params) for one in examples]
