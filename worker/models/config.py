"""A checkpoint's config.json as one checked, frozen value. What we can't run is refused here, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models.errors import ModelError
from worker.models.quantisation import Quantisation, parse_quantisation


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base `theta`, and how positions are stretched (type `default`, `linear` or `llama3`)."""

    theta: float
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_len: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. Lengths in tokens, sizes in elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_len: int
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]  # a layer's sliding window, None: sees everything
    dtype: str  # of the checkpoint: float32, float16 or bfloat16
    eos_ids: frozenset[int]
    quantisation: Quantisation | None = None  # of the checkpoint's projections

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """The products of a layer, as their weights are named in a checkpoint: (outputs, inputs)."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }


# What `transformers` takes for a key that config.json leaves out, where that differs from one family to another.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen2ForCausalLM": {"num_key_value_heads": 32, "sliding_window": 4096},
    "Qwen3ForCausalLM": {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
}
ARCHITECTURES = tuple(DEFAULTS)


def read_config(directory: Path) -> ModelConfig:
    """Read config.json and generation_config.json of `directory`.

    Raises ModelError if config.json is missing or unreadable, or asks for what is not supported.
    """
    raw = _read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    eos = _read_json(generation).get("eos_token_id") if generation.exists() else None
    return parse_config(raw, eos if eos is not None else raw.get("eos_token_id"))


def parse_config(raw: Mapping[str, Any], eos: int | list[int] | None) -> ModelConfig:
    """config.json's mapping to a ModelConfig. Defaults are those of `transformers` for the architecture.

    Raises ModelError as read_config does.
    """
    architecture = _architecture(raw)
    raw = {**DEFAULTS[architecture], **raw}
    _refuse_unsupported(raw)
    hidden, heads, layers = (_positive(raw, k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    qwen2, llama = architecture == "Qwen2ForCausalLM", architecture == "LlamaForCausalLM"
    bias = bool(raw.get("attention_bias", False)) and architecture != "MistralForCausalLM"
    max_len = _positive(raw, "max_position_embeddings")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_positive(raw, "head_dim", hidden // heads),
        intermediate_size=_positive(raw, "intermediate_size"),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope=_rope(raw, max_len),
        max_len=max_len,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=qwen2 or bias,
        output_bias=bias and not qwen2,
        mlp_bias=llama and bool(raw.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        windows=_windows(raw, architecture, layers),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        eos_ids=_eos_ids(eos),
        quantisation=parse_quantisation(raw.get("quantization_config")),
    )


def _eos_ids(eos: object) -> frozenset[int]:
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(id_, int) for id_ in ids):
        raise ModelError(f"eos_token_id must be a token id or a list of them, got {eos!r}")
    return frozenset(ids)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing: a model is a directory in Hugging Face format "
            f"(config.json, model.safetensors, tokenizer.json)"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw


def _architecture(raw: Mapping[str, Any]) -> str:
    named = raw.get("architectures")
    named = named if isinstance(named, list) and named else ["(none named)"]
    if named[0] not in ARCHITECTURES:
        raise ModelError(f"architecture {named[0]} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return str(named[0])


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if (act := raw.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"config.json: hidden_act {act!r} is not supported; expected 'silu'")


def _positive(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; `default` where the key is missing or null."""
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {key} must be a positive whole number, got {value!r}")
    return value


def _number(raw: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number above 0; `default` where the key is missing or null."""
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelError(f"config.json: {key} must be a number above 0, got {value!r}")
    return float(value)


def _rope(raw: Mapping[str, Any], max_len: int) -> RopeConfig:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of before."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ModelError(f"config.json: rope_parameters must be an object, got {rope!r}")
    theta = _number(rope, "rope_theta", _number(raw, "rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if _number(rope, "partial_rotary_factor", _number(raw, "partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError("config.json: partial_rotary_factor is not supported; expected 1.0")
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", factor=_number(rope, "factor"))
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            factor=_number(rope, "factor"),
            low_freq_factor=_number(rope, "low_freq_factor"),
            high_freq_factor=_number(rope, "high_freq_factor"),
            original_max_len=_positive(rope, "original_max_position_embeddings", max_len),
        )
    raise ModelError(f"config.json: rope type {kind!r} is not supported; supported: default, linear, llama3")


def _windows(raw: Mapping[str, Any], architecture: str, layers: int) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM" or raw.get("sliding_window") is None:
        return (None,) * layers
    if architecture == "MistralForCausalLM":
        return (_positive(raw, "sliding_window"),) * layers
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    window = _positive(raw, "sliding_window")
    kinds = raw.get("layer_types")
    if kinds:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise ModelError(f"config.json: layer_types must name {layers} layers, got {kinds!r}")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    full = raw.get("max_window_layers", 28)
    if not isinstance(full, int):
        raise ModelError(f"config.json: max_window_layers must be a whole number, got {full!r}")
    return tuple(window if layer >= full else None for layer in range(layers))
