"""Tiny quantised checkpoints, written from known codes by code of their own: the layouts of AWQ, GPTQ and FP8 as their
writers have them, beside the same model with its weights written out, which is what they must give.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.models.checkpoints import RECIPES

Codes = NDArray[np.int64]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight columns: the one in each nibble, lowest first
FAMILIES = ("llama, llama3 rope", "mistral, window of 24, wide heads", "qwen2, tied", "qwen3, sharded")
GROUP = 32


@dataclass(frozen=True)
class Written:
    """Directories of one model twice: its weights packed, and written out in fp32."""

    packed: Path
    plain: Path


@dataclass(frozen=True)
class Rounded:
    """A weight [N, K] as codes [K, N], zeros and scales [groups, N]; g_idx: the group of each input."""

    codes: Codes
    zeros: Codes
    scales: NDArray[np.float16]
    g_idx: Codes

    @property
    def whole(self) -> Tensor:
        """[N, K] fp32."""
        of_each = self.scales.astype(np.float32)[self.g_idx]
        return torch.from_numpy((self.codes - self.zeros[self.g_idx]).astype(np.float32) * of_each).t().contiguous()


def rounded(weight: Tensor, bits: int, g_idx: Codes, *, symmetric: bool) -> Rounded:
    """Each group of each output to codes of its own range. Zeros are at least 1, which GPTQ stores as one less."""
    w = weight.double().numpy().T  # [K, N]
    groups, steps = int(g_idx.max()) + 1, 2**bits - 1
    zeros, scales = np.zeros((groups, w.shape[1]), np.int64), np.zeros((groups, w.shape[1]), np.float16)
    codes = np.zeros(w.shape, np.int64)
    for group in range(groups):
        rows = w[g_idx == group]
        low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0)
        reach = np.maximum(-low, high) * 2 if symmetric else high - low
        scales[group] = reach / steps
        scale = scales[group].astype(np.float64)
        zeros[group] = (steps + 1) // 2 if symmetric else np.clip(np.round(-low / scale), 1, steps)
        codes[g_idx == group] = np.clip(np.round(rows / scale) + zeros[group], 0, steps)
    return Rounded(codes, zeros, scales, g_idx)


def words(fields: Codes, bits: int, order: tuple[int, ...]) -> Tensor:
    """[..., 32 / bits] codes -> [...] int32; order: the field that lies at each place, lowest bits first."""
    packed = np.zeros(fields.shape[:-1], np.uint64)
    for place, at in enumerate(order):
        packed |= (fields[..., at].astype(np.uint64) & ((1 << bits) - 1)) << np.uint64(bits * place)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32).copy())


def along_columns(codes: Codes, bits: int, order: tuple[int, ...]) -> Tensor:
    return words(codes.reshape(codes.shape[0], -1, 32 // bits), bits, order)


def along_rows(codes: Codes, bits: int) -> Tensor:
    fields = codes.reshape(-1, 32 // bits, codes.shape[1]).swapaxes(1, 2)
    return words(fields, bits, tuple(range(32 // bits)))


def awq(name: str, one: Rounded) -> dict[str, Tensor]:
    return {
        f"{name}.qweight": along_columns(one.codes, 4, AWQ_ORDER),
        f"{name}.qzeros": along_columns(one.zeros, 4, AWQ_ORDER),
        f"{name}.scales": torch.from_numpy(one.scales),
    }


def gptq(name: str, one: Rounded, bits: int, less: int) -> dict[str, Tensor]:
    return {
        f"{name}.qweight": along_rows(one.codes, bits),
        f"{name}.qzeros": along_columns(one.zeros - less, bits, tuple(range(32 // bits))),
        f"{name}.scales": torch.from_numpy(one.scales),
        f"{name}.g_idx": torch.from_numpy(one.g_idx.astype(np.int32)),
    }


Pack = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
"""(name, weight [N, K]) -> the tensors that stand for it, and what they stand for."""


def in_order(inputs: int, group: int) -> Codes:
    return np.arange(inputs) // group


def shuffled(inputs: int, group: int) -> Codes:
    """Groups as act-order makes them; the same for every weight of so many inputs."""
    return np.random.default_rng(inputs).permutation(in_order(inputs, group))


def pack_awq(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    one = rounded(weight, 4, in_order(weight.shape[1], GROUP), symmetric=False)
    return awq(name, one), one.whole


def pack_gptq(
    bits: int = 4, *, symmetric: bool = False, act_order: bool = False, less: int = 1, whole: bool = False
) -> Pack:
    def pack(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = weight.shape[1]
        g_idx = (shuffled if act_order else in_order)(inputs, inputs if whole else GROUP)
        one = rounded(weight, bits, g_idx, symmetric=symmetric)
        return gptq(name, one, bits, less), one.whole

    return pack


def pack_fp8(*, channel: bool) -> Pack:
    def pack(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        most = weight.abs().amax(1, keepdim=True) if channel else weight.abs().amax()
        scale = (most / 448).float()
        codes = (weight / scale).to(torch.float8_e4m3fn)
        return {f"{name}.weight": codes, f"{name}.weight_scale": scale}, codes.float() * scale

    return pack


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
LAYOUTS: dict[str, tuple[dict[str, Any], Pack]] = {
    "awq": (AWQ, pack_awq),
    "gptq": (GPTQ, pack_gptq()),
    "gptq of 8 bits": ({**GPTQ, "bits": 8, "sym": True}, pack_gptq(8, symmetric=True)),
    "gptq of 8 bits, asymmetric": ({**GPTQ, "bits": 8}, pack_gptq(8)),
    "gptq, symmetric, one group": ({**GPTQ, "group_size": -1, "sym": True}, pack_gptq(symmetric=True, whole=True)),
    "gptq, act-order": ({**GPTQ, "desc_act": True}, pack_gptq(act_order=True)),
    "gptq of 8 bits, act-order": ({**GPTQ, "bits": 8, "desc_act": True}, pack_gptq(8, act_order=True)),
    "gptq_v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, pack_gptq(less=0)),
    "fp8, a scale a weight": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, pack_fp8(channel=False)),
    "fp8, a scale an output": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
            "ignore": ["lm_head"],
        },
        pack_fp8(channel=True),
    ),
}


def write(
    directory: Path,
    layout: str,
    family: str = FAMILIES[0],
    *,
    left_out: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Written:
    """A model of `family` with its projections in `layout`, but those whose name ends as one of left_out."""
    config, pack = LAYOUTS[layout]
    recipe = RECIPES[family]
    model = replace(recipe, fields={**recipe.fields, "intermediate_size": 128}, max_shard_size="1GB").make()
    packed: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if not module.endswith("_proj") or module.endswith(left_out or ("nothing",)):
            packed[name] = weight.to(dtype)
            weight.copy_(packed[name])
            continue
        tensors, whole = pack(module, weight)
        packed |= tensors
        weight.copy_(whole)
    written = Written(directory / "packed", directory / "plain")
    model.save_pretrained(written.plain)
    written.packed.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in packed.items()}, written.packed / "model.safetensors")
    raw = json.loads((written.plain / "config.json").read_text())
    raw["quantization_config"] = {**config, "modules_to_not_convert": [*left_out, "lm_head"]}
    (written.packed / "config.json").write_text(json.dumps(raw))
    return written
