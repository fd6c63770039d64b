"""The demo model while it is trained: a Llama as one function of its weights, in the dtype it will be served in.

Weights are a dict of fp32 tensors under the names of a Hugging Face checkpoint; activations, and the weights as they
enter a product, are bf16, so that what is trained is what a bf16 worker computes. Rows are padded on the right, which a
causal mask makes harmless. Knows nothing of tasks, optimisers or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]

# Matrices that share an input: one product under the first one's name.
_JOINED = {"q_proj": ("k_proj", "v_proj"), "gate_proj": ("up_proj",)}


@dataclass(frozen=True)
class Shape:
    """The architecture, in the words of a Llama's `config.json`."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


def init_weights(shape: Shape, generator: torch.Generator) -> Weights:
    """Draw fp32 weights: norms 1, matrices of variance 1 / fan-in, those that add to the residual smaller by depth."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    weights = {"model.embed_tokens.weight": torch.randn(shape.vocab_size, hidden, generator=generator) * hidden**-0.5}
    for layer in range(shape.num_hidden_layers):
        for name, (rows, columns) in matrices.items():
            scale = columns**-0.5
            if name in ("self_attn.o_proj", "mlp.down_proj"):
                scale /= (2 * shape.num_hidden_layers) ** 0.5
            weights[f"model.layers.{layer}.{name}.weight"] = torch.randn(rows, columns, generator=generator) * scale
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden)
    weights["model.norm.weight"] = torch.ones(hidden)
    return weights


def pack(weights: Weights) -> Weights:
    """Return the weights as products take them: bf16, those that share an input joined; differentiable in `weights`.

    Packed once a step, for all its batches: it moves every weight.
    """
    packed = {}
    for name, weight in weights.items():
        for first, rest in _JOINED.items():
            if first in name:
                weight = torch.cat([weight, *(weights[name.replace(first, other)] for other in rest)])
        if not any(other in name for rest in _JOINED.values() for other in rest):
            packed[name] = weight.bfloat16()
    return packed


def hidden_states(packed: Weights, shape: Shape, ids: Tensor) -> Tensor:
    """Return the last layer's normed states `[B, T, hidden]` in bf16 for token ids `[B, T]`."""
    place = _place(shape, ids.shape[1])
    x = F.embedding(ids, packed["model.embed_tokens.weight"])
    for layer in range(shape.num_hidden_layers):
        own = f"model.layers.{layer}."
        x = x + _attend(packed, own + "self_attn.", shape, _norm(packed, own + "input_layernorm", shape, x), place)
        x = x + _mlp(packed, own + "mlp.", _norm(packed, own + "post_attention_layernorm", shape, x))
    return _norm(packed, "model.norm", shape, x)


def logits(packed: Weights, states: Tensor) -> Tensor:
    """Return fp32 logits `[N, vocab]` for states `[N, hidden]`, through the tied embedding."""
    return F.linear(states, packed["model.embed_tokens.weight"]).float()


def config_json(shape: Shape, bos: int, end: int, pad: int) -> dict[str, Any]:
    """Return the `config.json` that makes `transformers` and the worker build this architecture."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": bos,
        "eos_token_id": end,
        "pad_token_id": pad,
    }


@dataclass(frozen=True)
class _Place:
    """What depends on a row's length alone: cosines and sines `[T, head_dim]` and the causal mask `[T, T]`, in bf16."""

    cos: Tensor
    sin: Tensor
    causal: Tensor


def _place(shape: Shape, length: int) -> _Place:
    inverse = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    causal = torch.full((length, length), float("-inf"), dtype=torch.bfloat16).triu(1)
    return _Place(angles.cos().bfloat16(), angles.sin().bfloat16(), causal)


def _norm(packed: Weights, name: str, shape: Shape, x: Tensor) -> Tensor:
    return F.rms_norm(x, (shape.hidden_size,), packed[name + ".weight"], shape.rms_norm_eps)


def _rotate(x: Tensor, place: _Place) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * place.cos + torch.cat((-second, first), dim=-1) * place.sin


def _attend(packed: Weights, own: str, shape: Shape, x: Tensor, place: _Place) -> Tensor:
    batch, length, _ = x.shape
    queries, keys = shape.num_attention_heads, shape.num_key_value_heads
    heads = F.linear(x, packed[own + "q_proj.weight"]).view(batch, length, -1, shape.head_dim).transpose(1, 2)
    turned = _rotate(heads[:, : queries + keys], place)
    # One product for the queries that share a key. torch's fused attention takes four times as long in bf16 backward.
    query = turned[:, :queries].reshape(batch * keys, -1, shape.head_dim)
    key = turned[:, queries:].reshape(batch * keys, length, shape.head_dim)
    value = heads[:, queries + keys :].reshape(batch * keys, length, shape.head_dim)
    scores = torch.bmm(query, key.transpose(1, 2) * shape.head_dim**-0.5)
    share = (scores.view(batch, queries, length, length) + place.causal).softmax(-1)
    mixed = torch.bmm(share.view(batch * keys, -1, length), value).view(batch, -1, length, shape.head_dim)
    return F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), packed[own + "o_proj.weight"])


def _mlp(packed: Weights, own: str, x: Tensor) -> Tensor:
    gate, up = F.linear(x, packed[own + "gate_proj.weight"]).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, packed[own + "down_proj.weight"])
