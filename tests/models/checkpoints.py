"""Tiny random checkpoints of every family we claim, made by `transformers` while the tests run.

With the default initialisation a parity test shows little: logits hardly differ and every position counts the same,
so even leaving out llama3's rope scaling moves no argmax. So attention is sharp here, norms and biases are no ones and
zeros, the embedding is small (epsilon counts), and the final norm is scaled for logits of standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

VOCAB = 320
MAX_LEN = 1024
ORIGINAL_MAX_LEN = 64  # llama3's; most prompts of the parity tests pass it


@dataclass(frozen=True)
class Recipe:
    """A configuration class of `transformers`, its fields, and how the weights are cut into files."""

    config: type
    fields: dict[str, Any] = field(default_factory=dict)
    max_shard_size: str = "1GB"

    def make(self) -> PreTrainedModel:
        """A model in fp32, seeded, with weights as the module's docstring has them."""
        shape = {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "intermediate_size": 112,
            **self.fields,
        }
        torch.manual_seed(20)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            self.config(
                vocab_size=VOCAB,
                hidden_size=64,
                max_position_embeddings=MAX_LEN,
                rms_norm_eps=1e-5,
                **shape,
            ),
            dtype=torch.float32,
        ).eval()
        with torch.inference_mode():
            for name, weight in model.named_parameters():
                _initialise(name, weight)
            ids = torch.randint(0, VOCAB, (4, 128))
            model.model.norm.weight /= model(ids).logits.std()
        return model


def _initialise(name: str, weight: Tensor) -> None:
    kind = name.split(".")[-2]
    if name.endswith("bias"):  # small where they push every position the same way, which makes greedy text repeat
        weight.normal_(0.0, 0.3 if kind in ("q_proj", "k_proj") else 0.03)
    elif kind in ("q_norm", "k_norm"):
        weight.normal_(1.5, 0.3)
    elif "norm" in kind:
        weight.normal_(1.0, 0.2)
    elif kind == "embed_tokens":
        weight.normal_(0.0, 0.02)
    else:
        gain = 1.75 if kind in ("q_proj", "k_proj") else 1.0
        weight.normal_(0.0, gain * weight.shape[1] ** -0.5)


def _rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_theta": 10_000.0, **scaling}


LLAMA3 = _rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=ORIGINAL_MAX_LEN,
)

RECIPES = {
    "llama, llama3 rope": Recipe(LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama, all heads, linear rope, biases, tied": Recipe(
        LlamaConfig,
        {
            "num_key_value_heads": 4,
            "rope_parameters": _rope(rope_type="linear", factor=4.0),
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama, one key head, sharded": Recipe(LlamaConfig, {"num_key_value_heads": 1}, max_shard_size="100KB"),
    "mistral, window of 24, wide heads": Recipe(MistralConfig, {"sliding_window": 24, "head_dim": 32}),
    "mistral, all heads": Recipe(MistralConfig, {"num_key_value_heads": 4, "sliding_window": None}),
    "qwen2, tied": Recipe(Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2, windows from layer 1, all heads, sharded": Recipe(
        Qwen2Config,
        {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
        max_shard_size="100KB",
    ),
    "qwen3, sharded": Recipe(Qwen3Config, {"head_dim": 32}, max_shard_size="100KB"),
    "qwen3, all heads, biases, tied": Recipe(
        Qwen3Config, {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}
    ),
}


def save(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the checkpoint `name` into `directory`, its weights rounded to `dtype`."""
    recipe = RECIPES[name]
    recipe.make().to(dtype).save_pretrained(directory, max_shard_size=recipe.max_shard_size)
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint as `transformers` runs it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.eval()


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """[len(ids), vocab] fp32: what `transformers` gives for each position of one text, computed alone."""
    logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits.float()


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Prompts of the given lengths, of ids drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in lengths]


class Shelf:
    """Checkpoints on disk, each made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[tuple[str, torch.dtype], Path] = {}

    def __call__(self, name: str, dtype: torch.dtype = torch.float32) -> Path:
        """The directory of the checkpoint `name` with weights rounded to `dtype`. Copy it before changing it."""
        key = name, dtype
        if key not in self._made:
            self._made[key] = save(name, self._directory / f"checkpoint-{len(self._made)}", dtype)
        return self._made[key]
