"""INT8 K/V and INT8 weights beside bf16: what each costs in accuracy and gives in speed and memory.

Accuracy: exact match of the demo model on held-out prompts; and logits of the demo model over right answers and of the
random model over random tokens, each text in one pass, against those of float32. An error is told in standard
deviations of a position's logits, and bf16 has one too; `same` counts the positions whose greatest logit is float32's.
Speed: steps of rows that decode and of prompts, the configurations taking turns, each round a pair.

Exit codes: 0 measured, 1 a configuration answers other than it must, 2 bad flags or settings.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from kernels.prepare_batch import FlatBatch
from kernels.table import best_ops
from ops.bench import report
from ops.bench.machine import BUSY_CORES, Machine, Others
from ops.bench.online import model_of
from ops.bench.workload import prompts_of
from ops.demo.evaluate import MODEL_DIR, ask, heldout_examples, prompt_ids, shares, through_engine
from worker.engine import Engine, SequenceParams
from worker.engine.kv_format import KvFormat
from worker.models.config import read_config
from worker.models.decoder import Decoder

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8 K/V": {"kv_dtype": "int8"},
    "int8 weights": {"weights": "int8"},
    "both": {"kv_dtype": "int8", "weights": "int8"},
}
_PAGE = 32


@dataclass(frozen=True)
class Case:
    """Rows that decode behind so many tokens of context; or, with `prompt`, so many tokens of prompts in a step."""

    name: str
    rows: int
    context: int
    prompt: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = report.parser("int8", __doc__, runs=7)
    parser.add_argument("--workload", choices=("small", "mid"), default="small", help="the random model (%(default)s)")
    parser.add_argument(
        "--per-kind", type=int, default=100, help="prompts of each kind; 0: no exact match (%(default)s)"
    )
    parser.add_argument("--context", type=report.at_least_1, default=3072, help="of the long rows (%(default)s)")
    parser.add_argument("--steps", type=report.at_least_1, default=20, help="of a round (%(default)s)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.runs, given.per_kind, given.context, given.steps, given.rows = 1, 1, 100, 2, 4
    return _bench(given)


def _bench(given: argparse.Namespace) -> int:
    machine, others = Machine.here(quick=given.quick), Others()
    print("\n".join(machine.lines()))
    model = model_of(given.workload, given.cache)
    print(f"{given.threads} threads; {model.name} and the demo's model; medians of {given.runs} rounds\n")
    accuracy = {
        "demo": _logit_errors(MODEL_DIR, _answered(2 if given.quick else 12), given),
        given.workload: _logit_errors(model, prompts_of(1 if given.quick else 6, 40 if given.quick else 400), given),
    }
    exact = _exact_match(given) if given.per_kind else {}
    print(_accuracy_table(accuracy, exact), end="\n\n", flush=True)
    speed, kv_bytes = _speed(model, given)
    print(_speed_table(speed, kv_bytes), end="\n\n")
    names = ("runs", "threads", "rows", "backend", "workload", "per_kind", "context", "steps", "quick")
    kept = {name: getattr(given, name) for name in names}
    found = {"accuracy": accuracy, "exact_match": exact, "speed": speed, "kv_bytes_a_token": kv_bytes}
    busy = others.cores()
    if busy > BUSY_CORES:
        print(f"WARNING: other processes took {busy} cores: the times say little")
    print(f"JSON: {report.keep('int8', machine, kept, {**found, 'others_cores': busy}, save=given.save)}")
    return 0


def _answered(per_kind: int) -> list[list[int]]:
    """Held-out prompts of the demo and their right answers, as ids."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return [
        prompt_ids(tokenizer, one.prompt, chat=at % 2 == 0)
        + tokenizer(one.answer, add_special_tokens=False).input_ids
        + [tokenizer.eos_token_id]
        for at, one in enumerate(heldout_examples(per_kind, seed=3))
    ]


def _logit_errors(model: Path, texts: list[list[int]], given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each configuration against float32, over all positions of `texts`."""
    torch.set_num_threads(given.threads)
    truth = _logits(model, texts, torch.float32)
    size = truth.std(-1, keepdim=True)
    errors = {}
    for name, how in CONFIGURATIONS.items():
        got = _logits(model, texts, torch.bfloat16, **how)
        error = (got - truth) / size
        errors[name] = {
            "rms": float(error.square().mean().sqrt()),
            "max": float(error.abs().max()),
            "same": float((got.argmax(-1) == truth.argmax(-1)).float().mean()),
        }
    return errors


@torch.inference_mode()
def _logits(
    model: Path, texts: list[list[int]], dtype: torch.dtype, *, kv_dtype: str = "auto", weights: str = "auto"
) -> Tensor:
    """[tokens, vocab] fp32 of every position of the texts, each computed in one pass."""
    shape = read_config(model)
    ops, _ = best_ops(dtype, (shape.hidden_size, shape.intermediate_size, shape.head_dim))
    longest = max(map(len, texts))
    decoder = Decoder(model, shape, ops, dtype, max_len=longest, deterministic=False, stored=weights)
    stored, pages = KvFormat.of(kv_dtype, dtype), -(-longest // _PAGE)
    where = (shape, pages, _PAGE, decoder.device)
    kv, scales = stored.pages(*where), stored.scales(*where)

    def one_pass(text: list[int]) -> Tensor:
        length, every = len(text), torch.arange(len(text))
        table = torch.arange(pages, dtype=torch.int32).unsqueeze(0)
        batch = FlatBatch(
            torch.tensor(text),
            every,
            every,
            torch.tensor([0, length]),
            torch.tensor([length]),
            table,
            every,
            num_decode=0,
        )
        return decoder.forward(batch, kv, scales).float()

    return torch.cat([one_pass(text) for text in texts])


def _exact_match(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each configuration on the demo's model: shares of right answers, by kind and over all."""
    examples = heldout_examples(given.per_kind, seed=1)
    return {
        name: shares(ask(MODEL_DIR, examples, through_engine(MODEL_DIR, given.threads, **how)))
        for name, how in CONFIGURATIONS.items()
    }


def _speed(model: Path, given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Of each case every configuration's milliseconds, round by round; and what a token's K/V takes."""
    engines = {
        name: Engine.from_pretrained(
            model,
            dtype="bfloat16",
            max_rows=given.rows,
            token_budget=max(512, given.rows),
            step_time_s=None,
            threads=given.threads,
            backend=given.backend,
            prefix_cache=False,
            max_drafts=0,  # random weights repeat themselves as no text does
            **how,
        )
        for name, how in CONFIGURATIONS.items()
    }
    few = min(8, given.rows)
    cases = [
        *(Case(f"{rows} rows", rows, 128) for rows in sorted({1, few, given.rows})),
        Case(f"{few} rows of {given.context}", few, given.context),
        Case("512 tokens of prompts", 4, 128, prompt=True),
        Case(f"a prompt of {given.context}", 1, given.context, prompt=True),
    ]
    found = []
    for case in cases:
        rounds = _rounds(engines, case, given)
        print(f"{case.name}: done", file=sys.stderr)
        found.append({"case": case.name, "ms": {name: [round(1000 * s, 4) for s in rounds[name]] for name in rounds}})
    described = {name: engine.describe() for name, engine in engines.items()}
    kv = {name: one["pool_bytes"] / one["num_pages"] / one["page_size"] for name, one in described.items()}
    return found, kv


def _rounds(engines: dict[str, Engine], case: Case, given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step, or of the prompts, of each engine in each round; they take turns, after a round to warm up."""
    if not case.prompt:
        for engine in engines.values():
            for row, prompt in enumerate(prompts_of(case.rows, case.context)):
                engine.add(row, prompt, SequenceParams(engine.max_len - case.context))
            while engine.step().tokens != case.rows:
                pass
    rounds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(given.runs + 1):
        for name in list(engines)[:: 1 if turn % 2 else -1]:
            engine = engines[name]
            seconds = _prompts_s(engine, case) if case.prompt else _step_s(engine, given.steps)
            if turn:
                rounds[name].append(seconds)
    for engine in engines.values():
        for row in range(case.rows):
            engine.cancel(row)
    return rounds


def _step_s(engine: Engine, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return (time.perf_counter() - began) / steps


def _prompts_s(engine: Engine, case: Case) -> float:
    for row, prompt in enumerate(prompts_of(case.rows, case.context)):
        engine.add(row, prompt, SequenceParams(1))
    began = time.perf_counter()
    while engine.has_work:
        engine.step()
    return time.perf_counter() - began


def _accuracy_table(accuracy: dict[str, dict[str, dict[str, float]]], exact: dict[str, dict[str, float]]) -> str:
    head = ["", *(f"{model}: rms" for model in accuracy), *(f"{model}: max" for model in accuracy)]
    head += [f"{model}: same" for model in accuracy] + (["exact, all", "counting"] if exact else [])
    rows = []
    for name in CONFIGURATIONS:
        errors = [of_model[name] for of_model in accuracy.values()]
        row = [name, *(f"{one['rms']:.4f}" for one in errors), *(f"{one['max']:.3f}" for one in errors)]
        row += [f"{100 * one['same']:.2f} %" for one in errors]
        if exact:
            row += [f"{100 * exact[name][which]:.2f} %" for which in ("overall", "counting")]
        rows.append(row)
    return report.table(head, rows)


def _speed_table(speed: list[dict[str, Any]], kv_bytes: dict[str, float]) -> str:
    """Milliseconds, and how many times as fast as bf16: the median over the pairs."""
    head = ["", *(one["case"] for one in speed), "K/V a token"]
    rows = []
    for name in CONFIGURATIONS:
        row = [name]
        for one in speed:
            ours, plain = one["ms"][name], one["ms"]["bf16"]
            ratio = statistics.median(b / a for a, b in zip(ours, plain, strict=True))
            row.append(f"{statistics.median(ours):.3g} ms" + ("" if name == "bf16" else f" ({ratio:.2f}x)"))
        rows.append([*row, f"{kv_bytes[name]:.0f} B"])
    return report.table(head, rows)
