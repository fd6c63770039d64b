"""config.json's quantization_config as one checked value: what a checkpoint's quantised weights are, or one line why
they can't be read. Nothing is opened here; worker/models/projections.py reads the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.models.errors import ModelError


class Layout(StrEnum):
    """How a checkpoint lays its quantised weights out: by the name of what writes it."""

    AWQ = "awq"
    GPTQ = "gptq"
    FP8 = "fp8"


@dataclass(frozen=True)
class Quantisation:
    """bits of a code; group: inputs that share a scale, None: all of them; less: what GPTQ takes off a zero it stores.

    Of FP8 weights a scale is for a whole weight or for an output, which the tensor's shape says.
    """

    layout: Layout
    bits: int
    group: int | None = None
    less: int = 0

    @property
    def words(self) -> str:
        """For people."""
        if self.layout is Layout.FP8:
            return "fp8"
        return f"{self.layout} of {self.bits} bits, {f'groups of {self.group}' if self.group else 'one group'}"


def parse_quantisation(found: object) -> Quantisation | None:
    """quantization_config's value, None where there is none. Raises ModelError for what is not supported."""
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise ModelError(f"config.json: quantization_config must be an object, got {found!r}")
    method = found.get("quant_method")
    readers = {"awq": _awq, "gptq": _gptq, "fp8": _fp8, "compressed-tensors": _compressed_tensors}
    if method not in readers:
        raise _refusal(f"quant_method {method!r}", ", ".join(readers))
    return readers[method](found)


def _awq(found: Mapping[str, Any]) -> Quantisation:
    bits = found.get("bits", found.get("w_bit"))
    group = found.get("group_size", found.get("q_group_size"))
    version = str(found.get("version", "gemm")).lower()
    if bits != 4:
        raise _refusal(f"awq of {bits!r} bits", "4")
    if version != "gemm":
        raise _refusal(f"awq version {version!r}", "'gemm'")
    if found.get("zero_point", True) is not True:
        raise _refusal("awq without zero_point", "true")
    return Quantisation(Layout.AWQ, 4, _group(group))


def _gptq(found: Mapping[str, Any]) -> Quantisation:
    bits, written = found.get("bits"), found.get("checkpoint_format", "gptq")
    if bits not in (4, 8):
        raise _refusal(f"gptq of {bits!r} bits", "4 or 8")
    if written not in ("gptq", "gptq_v2"):
        raise _refusal(f"checkpoint_format {written!r}", "gptq or gptq_v2")
    if found.get("is_marlin_format"):
        raise _refusal("is_marlin_format", "the format it was made from")
    if found.get("dynamic"):
        raise _refusal("gptq with another quantisation for some modules (dynamic)", "one for all")
    if found.get("lm_head"):
        raise _refusal("a quantised lm_head", "one in bf16 or fp16")
    return Quantisation(Layout.GPTQ, bits, _group(found.get("group_size")), less=1 if written == "gptq" else 0)


def _fp8(found: Mapping[str, Any]) -> Quantisation:
    if found.get("weight_block_size"):
        raise _refusal(f"fp8 with scales of blocks ({found['weight_block_size']!r})", "a scale a weight or output")
    return Quantisation(Layout.FP8, 8)


def _compressed_tensors(found: Mapping[str, Any]) -> Quantisation:
    groups = found.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    if len(groups) != 1 or not isinstance(groups[0], Mapping) or not isinstance(groups[0].get("weights"), Mapping):
        raise _refusal(f"compressed-tensors with {len(groups)} groups", "one, with its weights")
    weights = groups[0]["weights"]
    kind = f"{weights.get('type')} of {weights.get('num_bits')} bits, a scale for each {weights.get('strategy')}"
    if (weights.get("type"), weights.get("num_bits")) != ("float", 8) or weights.get("strategy") not in (
        "tensor",
        "channel",
    ):
        raise _refusal(f"compressed-tensors of {kind}", "float of 8 bits, a scale for each tensor or channel")
    return Quantisation(Layout.FP8, 8)


def _group(size: object) -> int | None:
    if size == -1:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 32 or size % 32:
        raise _refusal(f"group_size {size!r}", "a multiple of 32, or -1 for one group")
    return size


def _refusal(what: str, expected: str) -> ModelError:
    return ModelError(
        f"config.json: quantization_config: {what} is not supported; expected {expected}: "
        f"take another checkpoint of the model, or its bf16 one"
    )
