"""Decoding on a GPU against the floor, on random weights of true shapes made there: `make gpu-bench-engine`.

First Llama-3.1-8B over widths and contexts: milliseconds a step in a steady state, against what memory and arithmetic
allow, and how much of a step the host is busy; and prompts that come alone, up to their first token. Then 256 requests
with prompts and outputs uniform in 100 to 1,024 on Qwen3-0.6B (the nano-vllm benchmark), and some steps of Qwen3-8B.
`--with transformers` runs the same requests there instead, in static batches of 64 and with its own continuous
batching, with two kinds of attention, for `--patience` seconds each. `--weights` rounds projections. Results are
written as they come, so that a run cut short leaves what it has. Without a GPU the floors alone are printed: nothing
is measured then.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch

from ops.bench import report
from ops.bench.device import DATA_SHEETS, Ceilings, measured_ceilings, provenance
from ops.bench.gpu_prompts import prompts
from ops.bench.kernel_cases import FORMS, LLAMA_8B, QWEN_06B, QWEN_8B, Model
from worker.engine import ConfigError, Engine, EngineConfig, SequenceParams
from worker.models.config import parse_config
from worker.models.random_weights import RandomWeights

WIDTHS, CONTEXTS = (1, 16, 64, 256), (512, 2048, 8192)
GOALS = {1: 0.65, 16: 0.70, 64: 0.70, 256: 0.65}  # of the floor
PROMPTS = (512, 2048, 4096, 8192)
WARM_STEPS, STEPS = 10, 40
REQUESTS, LEAST, MOST = 256, 100, 1024
ROOM = 64  # positions beyond a context, for the steps that are timed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench gpu_engine", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=DATA_SHEETS, default="h200", help="to predict for without a GPU")
    parser.add_argument("--with", choices=("slipstream", "transformers"), default="slipstream", dest="system")
    parser.add_argument("--weights", choices=FORMS, default="auto", help="what projections are kept as (%(default)s)")
    parser.add_argument("--kv-dtype", choices=("auto", "fp8", "int8"), default="auto", help="of pages (%(default)s)")
    parser.add_argument("--deterministic", action="store_true", help="everything in the fixed order")
    parser.add_argument("--patience", type=float, help="seconds for each part with transformers (150)")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin nothing new after this (%(default)s)")
    parser.add_argument("--only", default="", help="what has this in its name")
    parser.add_argument("--json", type=Path, help="where to write; ops/bench/results on a GPU unless given")
    given = parser.parse_args(arguments)
    how = {"weights": given.weights, "kv_dtype": given.kv_dtype, "deterministic": given.deterministic}
    if given.system == "transformers" and how != {"weights": "auto", "kv_dtype": "auto", "deterministic": False}:
        parser.error("--weights, --kv-dtype and --deterministic are this engine's; leave them out with transformers")
    if given.system == "slipstream" and given.patience is not None:
        parser.error("--patience is for --with transformers; leave it out")
    if given.patience is not None and given.patience <= 0:
        parser.error(f"--patience: expected seconds above 0, got {given.patience:g}")
    there = torch.cuda.is_available()
    ceilings = measured_ceilings() if there else DATA_SHEETS[given.device]
    cases = list(_ours(ceilings, how) if given.system == "slipstream" else _theirs(given.patience or 150.0))
    chosen = [(name, case) for name, case in cases if given.only in name]
    if not chosen:
        parser.error(f"--only {given.only!r} is in no name; there are {', '.join(name for name, _ in cases)}")
    if not there:
        print(_floors(ceilings, given.weights))
        return 0
    print(f"{ceilings.device}: {ceilings.bytes_s / 1e12:.2f} TB/s, {ceilings.flop_s / 1e12:.0f} TFLOP/s, measured\n")
    kept = Kept(given.json or _path(ceilings, given.system, how), ceilings, given.system, how)
    deadline = time.monotonic() + 60 * given.minutes
    for name, case in chosen:
        if time.monotonic() > deadline:
            print(f"{name}: left out, {given.minutes:g} minutes are over")
            kept.add({"name": name, "left_out": "no time"})
            continue
        try:
            for one in case():
                print(_line({"name": name, **one}), flush=True)
                kept.add({"name": name, **one})
        except (torch.OutOfMemoryError, ConfigError) as error:
            kept.add({"name": name, "left_out": str(error).splitlines()[0]})
            print(f"{name}: left out, {error}", file=sys.stderr)
        gc.collect()
        torch.cuda.empty_cache()
    print(f"\nJSON: {kept.path}")
    return 0


class Kept:
    """What was found so far, on the disk."""

    def __init__(self, path: Path, ceilings: Ceilings, system: str, how: dict[str, Any]) -> None:
        self.path = path
        self._body: dict[str, Any] = {
            "bench": "gpu_engine",
            "system": system,
            **how,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **provenance(),
            "ceilings": asdict(ceilings),
            "found": [],
        }

    def add(self, one: dict[str, Any]) -> None:
        """Write it down now."""
        self._body["found"].append(one)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self._body, indent=1) + "\n")


def _ours(ceilings: Ceilings, how: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Iterable[dict[str, Any]]]]]:
    yield f"{LLAMA_8B.name} steps", lambda: _grid(LLAMA_8B, ceilings, WIDTHS, CONTEXTS, how)
    yield f"{LLAMA_8B.name} prompts", lambda: _prompts(LLAMA_8B, ceilings, how)
    yield f"{QWEN_06B.name} {REQUESTS} requests", lambda: [_workload(QWEN_06B, how)]
    yield f"{QWEN_06B.name} steps", lambda: _grid(QWEN_06B, ceilings, (1, 64), (512, 2048), how)
    yield f"{QWEN_8B.name} steps", lambda: _grid(QWEN_8B, ceilings, (1, 64), (2048,), how)


def _theirs(patience_s: float) -> Iterator[tuple[str, Callable[[], Iterable[dict[str, Any]]]]]:
    from ops.bench import gpu_transformers

    sent = requests(QWEN_06B)
    yield "transformers static 64", lambda: gpu_transformers.static(QWEN_06B, sent, 64, patience_s)
    yield "transformers continuous", lambda: [gpu_transformers.continuous(QWEN_06B, sent, patience_s)]
    varlen = gpu_transformers.VARLEN
    yield "transformers varlen", lambda: [gpu_transformers.continuous(QWEN_06B, sent, patience_s, attention=varlen)]


def config_of(model: Model, max_len: int) -> dict[str, Any]:
    """config.json of a model's shape."""
    family = "LlamaForCausalLM" if model.name.startswith("Llama") else "Qwen3ForCausalLM"
    return {
        "architectures": [family],
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.D,
        "intermediate_size": model.inner,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": max_len,
        "tie_word_embeddings": model.tied,
        "dtype": "bfloat16",
    }


def engine_of(model: Model, *, max_rows: int, max_len: int, token_budget: int, **how: Any) -> Engine:
    """An engine on random weights of the model's shape, on the GPU; how: more of EngineConfig."""
    config = EngineConfig(
        max_rows=max_rows, max_len=max_len, token_budget=token_budget, prefix_cache=False, step_time_s=None,
        watermark=0.0, headroom=0.0, device="cuda", **how,
    )  # fmt: skip
    made = RandomWeights(torch.device("cuda"), tied=model.tied)
    engine = Engine.from_weights(made, parse_config(config_of(model, max_len), None), config)
    print(f"{model.name}: {json.dumps(engine.describe())}", flush=True)
    return engine


def pretend_computed(engine: Engine) -> None:
    """From now on prompts count as computed up to their last token when they get a row, with zeros for K and V: what a
    step takes does not depend on what stands in the pages."""
    scheduler = engine._scheduler
    seat = scheduler._seat

    def seated(sequence: Any) -> None:
        seat(sequence)
        sequence.computed = sequence.num_tokens - 1

    # no setting of an engine: one that did this in earnest would answer nonsense
    scheduler._seat = seated  # type: ignore[method-assign]
    with torch.inference_mode():
        engine._kv.zero_()


def _grid(
    model: Model, ceilings: Ceilings, widths: Sequence[int], contexts: Sequence[int], how: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    sizes = {"max_rows": max(widths), "max_len": max(contexts) + ROOM, "token_budget": 4096}
    return steps(engine_of(model, **sizes, **how), model, ceilings, widths, contexts)


def _prompts(model: Model, ceilings: Ceilings, how: dict[str, Any]) -> Iterator[dict[str, Any]]:
    engine = engine_of(model, max_rows=16, max_len=max(PROMPTS) + 1, token_budget=4096, **how)
    return prompts(engine, model, ceilings, PROMPTS)


def steps(
    engine: Engine, model: Model, ceilings: Ceilings, widths: Sequence[int], contexts: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Steps of each width at each context, where they fit."""
    pretend_computed(engine)
    ids = Random(1)
    for context in contexts:
        for width in widths:
            needed = width * -(-(context + ROOM) // engine.config.page_size)
            if needed > engine.num_free_pages:
                yield {"width": width, "context": context, "left_out": f"it takes {needed} pages, fewer are free"}
                continue
            for row in range(width):
                prompt = [ids.randrange(model.vocab) for _ in range(context)]
                engine.add(row, prompt, SequenceParams(ROOM, temperature=0.0))
            yield _timed(engine, model, ceilings, width, context)
            for row in range(width):
                engine.cancel(row)
            engine.forget_prefixes()


def _timed(engine: Engine, model: Model, ceilings: Ceilings, width: int, context: int) -> dict[str, Any]:
    """Milliseconds a step of `width` decodes, what the host took of it, and the floor."""
    for _ in range(WARM_STEPS):
        engine.step()
    waited, began = engine.stats.waited_s, time.perf_counter()
    for _ in range(STEPS):
        output = engine.step()
        assert output.tokens == width, f"{output.tokens} tokens in a step of {width} decodes"
    took = (time.perf_counter() - began) / STEPS
    host = took - (engine.stats.waited_s - waited) / STEPS
    config, described = engine.config, engine.describe()
    form = FORMS[config.weights]
    moved, flops = model.step(width, context, form)
    stored = described["pool_bytes"] / described["num_pages"] / described["page_size"]  # of a token's K/V
    floor = ceilings.floor_s(moved + width * context * (stored - model.kv_bytes), flops)
    as_asked = model is LLAMA_8B and form is FORMS["auto"] and config.kv_dtype == "auto" and not config.deterministic
    return {
        "width": width,
        "context": context,
        "ms": took * 1e3,
        "floor_ms": floor * 1e3,
        "of_floor": floor / took,
        "host_ms": host * 1e3,
        "host_share": host / took,
        "goal": GOALS.get(width) if as_asked else None,
    }


def requests(model: Model, count: int = REQUESTS) -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each is to be answered with; the same everywhere."""
    drawn = Random(0)
    return [
        ([drawn.randrange(model.vocab) for _ in range(drawn.randint(LEAST, MOST))], drawn.randint(LEAST, MOST))
        for _ in range(count)
    ]


def _workload(model: Model, how: dict[str, Any]) -> dict[str, Any]:
    engine = engine_of(model, max_rows=REQUESTS, max_len=2 * MOST, token_budget=4096, **how)
    sent = requests(model)
    engine.generate([sent[0][0]], SequenceParams(8))
    stats = engine.stats
    before, waited, busy = stats.steps, stats.waited_s, stats.busy_seconds
    began = time.perf_counter()
    answers = engine.generate([prompt for prompt, _ in sent], [SequenceParams(limit) for _, limit in sent])
    took = time.perf_counter() - began
    tokens = sum(len(answer.token_ids) for answer in answers)
    assert tokens == sum(limit for _, limit in sent), "some answers ended early"
    count, busy = stats.steps - before, stats.busy_seconds - busy
    host = busy - (stats.waited_s - waited)
    return {
        "output_tokens": tokens,
        "seconds": took,
        "tokens_per_s": tokens / took,
        "steps": count,
        "host_ms": 1e3 * host / count,
        "host_share": host / busy,
        "compiled_late": engine.load()["compiled_late"],
    }


def _line(one: dict[str, Any]) -> str:
    parts = [f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in one.items()]
    return ", ".join(parts).removeprefix("name ")


def _floors(ceilings: Ceilings, weights: str) -> str:
    rows = []
    for model in (LLAMA_8B, QWEN_06B, QWEN_8B):
        for width in WIDTHS:
            form = FORMS[weights]
            floors = [ceilings.floor_s(*model.step(width, context, form)) * 1e3 for context in CONTEXTS]
            goal = GOALS[width] if model is LLAMA_8B and weights == "auto" else None
            rows.append([model.name, str(width), *(f"{f:.2f}" for f in floors), f"{goal:.0%}" if goal else ""])
    head = ["model", "rows", *(f"context {context:,}" for context in CONTEXTS), "goal, of the floor"]
    kind = "" if weights == "auto" else f", weights {weights}"
    said = f"No GPU here. Floors of a decode step in ms on {ceilings.device}{kind}, as its maker says: predictions.\n\n"
    return said + report.table(head, rows)


def _path(ceilings: Ceilings, system: str, how: dict[str, Any]) -> Path:
    device = re.sub(r"[^a-z0-9]+", "-", ceilings.device.lower()).strip("-")
    end = "" if system == "slipstream" else f"-{system}"
    end += "" if how["weights"] == "auto" else f"-{how['weights']}"
    end += "" if how["kv_dtype"] == "auto" else f"-kv-{how['kv_dtype']}"
    end += "-deterministic" if how["deterministic"] else ""
    return report.RESULTS / f"{device}-{time.strftime('%Y-%m-%d')}{end}.json"
