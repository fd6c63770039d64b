"""The 256 requests with `transformers` on the GPU, on random weights of the same shape: its static batches, padded on
the left and as long as their longest output, and its own continuous batching, each as its documentation has it.

Both stop after `patience_s` and tell what was answered and how many tokens there were by then: a run cut short is a
figure too, and kinder to a static batch than a whole one, whose last steps are for its longest rows alone.

Attention is the library's `sdpa`, as FlashAttention is a package of its own, which a machine without a network lacks.
Its continuous batching says that it is "much better" with that one: with `paged|sdpa` every step attends all rows to
all rows' keys, under a mask, and by its own rules goes without CUDA graphs and without batches made ahead. So there is
a third way, which its documentation has no example of: its continuous batching with the FlashAttention that torch
brings, called as the library calls the package for rows of any length, with graphs and batches made ahead as it would
choose then. Not known: what its fast path of decodes would add, which reads K/V in place and needs the package. 5.17
takes attention of one's own there; 5.23 refuses it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from ops.bench.gpu_engine import MOST, config_of
from ops.bench.kernel_cases import Model

Sent = list[tuple[list[int], int]]
PATIENCE_S = 150.0
WARM_S = 60.0  # for the first few tokens
STOP_S = 60.0  # for the step under way when patience ends
VARLEN = "torch_varlen"
TOKEN_BUDGET = 4096  # of a step, as this engine has it there
BLOCK = 256  # tokens of a block of its K/V


def static(
    model: Model, sent: Sent, batch: int, patience_s: float = PATIENCE_S, device: str = "cuda"
) -> Iterator[dict[str, Any]]:
    """Batches of `batch` requests in the order they stand in: each as it ends, then all together."""
    loaded = _load(model, device)
    _batch(loaded, [(prompt, 8) for prompt, _ in sent[:batch]], WARM_S)
    answered, tokens, whole = 0, 0, 0.0
    for first in range(0, len(sent), batch):
        if whole >= patience_s:
            break
        some = sent[first : first + batch]
        began = time.perf_counter()
        steps = _batch(loaded, some, patience_s - whole)
        took = time.perf_counter() - began
        done = sum(count <= steps for _, count in some)
        made = sum(min(count, steps) for _, count in some)
        answered, tokens, whole = answered + done, tokens + made, whole + took
        yield {"batch": 1 + first // batch, "steps": steps, **_figures(done, len(some), made, took)}
    yield _figures(answered, len(sent), tokens, whole)


def continuous(
    model: Model, sent: Sent, patience_s: float = PATIENCE_S, device: str = "cuda", attention: str = "sdpa"
) -> dict[str, Any]:
    """All handed to its continuous batching at once, warmed up before."""
    loaded = _load(model, device, attention)
    manager = _manager(loaded, sent, attention)
    manager.warmup()  # makes the cache too
    config, used = manager.continuous_batching_config, loaded.config._attn_implementation
    manager.start()
    try:
        made, error = _answers(manager, [(sent[0][0][: BLOCK // 2], 8)], time.perf_counter() + WARM_S)
        began = time.perf_counter()
        if not error and made:
            made, error = _answers(manager, sent, began + patience_s)
        elif not error:
            made, error = {}, f"no answer to a first request of 8 tokens in {WARM_S:g} s"
        took, answered = time.perf_counter() - began, len(made)
    finally:  # leaving its context would wait for all requests however long they take
        manager.stop(block=True, timeout=STOP_S, hard_stop=True)
    if answered < len(sent):  # stopping handed over what the others had, with the step that was under way
        while (rest := manager.get_result(timeout=0.1)) is not None:
            made[rest.request_id] = len(rest.generated_tokens)
            took = max(took, rest.lifespan[1] - began)
    return {
        **({"error": error} if error else {}),
        **_figures(answered, len(sent), sum(made.values()), took),
        "attention": used,
        "graphs": any(config.cuda_graph_booleans),
        "token_budget": config.max_batch_tokens,
    }


def _answers(manager: Any, sent: Sent, until: float) -> tuple[dict[str, int], str | None]:
    """Tokens of each request that was answered whole, and what went wrong if something did: its thread tells every
    request why it died, and says no more than nothing to who asks after that."""
    wanted = {manager.add_request(prompt, max_new_tokens=count): count for prompt, count in sent}
    made: dict[str, int] = {}
    while len(made) < len(wanted) and (left := until - time.perf_counter()) > 0:
        result = manager.get_result(timeout=min(left, 1.0))
        if result is not None and result.error is not None:
            return made, (result.error.splitlines() or ["it failed without a word"])[0]
        if result is not None:
            made[result.request_id] = len(result.generated_tokens)
            assert made[result.request_id] == wanted[result.request_id], "a request ended early"
        elif not manager.is_running():
            return made, "its thread has ended and did not say why"
    return made, None


def _manager(loaded: Any, sent: Sent, attention: str) -> Any:
    """Its settings are what it would choose, but it is told that no more than these come, and has room for the K/V of
    them all, not for what the memory holds. Its mask has a column for each token of that room, and from 2^32 elements
    on, which it would have on a GPU of 140 GB, attention reads the wrong ones (torch issue 187227)."""
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    graphs = loaded.device.type == "cuda"
    ahead = {"use_cuda_graph": graphs, "use_async_batching": graphs} if attention == VARLEN else {}
    blocks = sum(-(-(len(prompt) + count) // BLOCK) for prompt, count in sent)
    return loaded.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1, max_new_tokens=8),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=blocks, max_batch_tokens=TOKEN_BUDGET, max_requests_per_batch=len(sent), **ahead
        ),
    )


def _varlen(module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> tuple[Any, None]:
    """Attention of rows of any length over their K/V, gathered from the cache, in torch's FlashAttention."""
    key, value = how["cache"].update(
        key, value, layer_idx=module.layer_idx, read_index=how["read_index"], write_index=how["write_index"]
    )
    output: Any = varlen_attn(
        query[0].transpose(0, 1).contiguous(), key.contiguous(), value.contiguous(),
        how["cu_seq_lens_q"], how["cu_seq_lens_k"], how["max_seqlen_q"], how["max_seqlen_k"],
        scale=how["scaling"], window_size=(-1, 0),
    )  # fmt: skip
    return output[None], None


def _load(model: Model, device: str, attention: str = "sdpa") -> Any:
    """The model with random weights, made on the device."""
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    for name in (VARLEN, f"paged|{VARLEN}"):  # the second is what its continuous batching makes of the first
        AttentionInterface.register(name, _varlen)

    with tempfile.TemporaryDirectory() as directory:
        body = {**config_of(model, 2 * MOST), "model_type": "llama" if model.name.startswith("Llama") else "qwen3"}
        Path(directory, "config.json").write_text(json.dumps(body))
        config = AutoConfig.from_pretrained(directory)
    config.eos_token_id = None
    with torch.device(device):
        loaded = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return loaded.eval()


@torch.inference_mode()
def _batch(loaded: Any, some: Sent, patience_s: float) -> int:
    """Steps it made: as many as the longest output has tokens, or fewer where patience ended."""
    from transformers import GenerationConfig

    width, longest = max(len(prompt) for prompt, _ in some), max(count for _, count in some)
    ids = torch.zeros(len(some), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(some):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    wanted = GenerationConfig(
        max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=0, max_time=patience_s
    )
    began = time.perf_counter()
    output = loaded.generate(ids.to(loaded.device), attention_mask=mask.to(loaded.device), generation_config=wanted)
    steps: int = output.cpu().shape[1] - width
    assert steps == longest or time.perf_counter() - began >= patience_s, "a batch ended early"
    return steps


def _figures(answered: int, of: int, tokens: int, took: float) -> dict[str, Any]:
    return {
        "answered": answered, "of": of, "output_tokens": tokens, "seconds": took, "tokens_per_s": tokens / took,
    }  # fmt: skip
