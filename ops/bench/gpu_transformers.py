"""The 256 requests with `transformers` on the GPU, on random weights of the same shape: its static batches, padded on
the left and as long as their longest output, and its own continuous batching, each as its documentation has it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ops.bench.gpu_engine import MOST, config_of
from ops.bench.kernel_cases import Model

Sent = list[tuple[list[int], int]]


def static(model: Model, sent: Sent, batch: int) -> Iterator[dict[str, Any]]:
    """Batches of `batch` requests in the order they stand in: each as it ends, then all together."""
    from transformers import GenerationConfig

    loaded = _load(model)
    _batch(loaded, sent[:batch], GenerationConfig(max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0))
    whole = 0.0
    for first in range(0, len(sent), batch):
        some = sent[first : first + batch]
        longest = max(count for _, count in some)
        wanted = GenerationConfig(max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=0)
        torch.cuda.synchronize()
        began = time.perf_counter()
        _batch(loaded, some, wanted)
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        whole += took
        yield {"batch": 1 + first // batch, **_figures(some, took)}
    yield _figures(sent, whole)


def continuous(model: Model, sent: Sent, patience_s: float = 150.0) -> dict[str, Any]:
    """All handed to its continuous batching at once, warmed up before: what it has answered after patience_s."""
    from transformers import GenerationConfig

    loaded = _load(model)
    config = GenerationConfig(do_sample=False, pad_token_id=0, max_new_tokens=8)
    with loaded.continuous_batching_context_manager(generation_config=config) as manager:
        began = time.perf_counter()
        for prompt, count in sent:
            manager.add_request(prompt, max_new_tokens=count, eos_token_id=-1)
        tokens = answered = 0
        while answered < len(sent) and (left := began + patience_s - time.perf_counter()) > 0:
            result = manager.get_result(timeout=left)
            if result is not None:
                answered, tokens = answered + 1, tokens + len(result.generated_tokens)
        took = time.perf_counter() - began
    return {"answered": answered, "output_tokens": tokens, "seconds": took, "tokens_per_s": tokens / took}


def _load(model: Model) -> Any:
    """The model with random weights, made on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        body = {**config_of(model, 2 * MOST), "model_type": "llama" if model.name.startswith("Llama") else "qwen3"}
        Path(directory, "config.json").write_text(json.dumps(body))
        config = AutoConfig.from_pretrained(directory)
    config.eos_token_id = None
    with torch.device("cuda"):
        loaded = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return loaded.eval()


@torch.inference_mode()
def _batch(loaded: Any, some: Sent, wanted: Any) -> None:
    width = max(len(prompt) for prompt, _ in some)
    ids = torch.zeros(len(some), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(some):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = loaded.generate(ids.cuda(), attention_mask=mask.cuda(), generation_config=wanted)
    assert output.shape[1] - width == wanted.max_new_tokens, "a batch ended early"


def _figures(sent: Sent, took: float) -> dict[str, Any]:
    tokens = sum(count for _, count in sent)
    return {"output_tokens": tokens, "seconds": took, "tokens_per_s": tokens / took}
