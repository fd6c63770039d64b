"""What pages of K/V hold, the model's dtype or a smaller one with scales (kernels/kv_scales.py), and what they take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.kv_scales import KvScales
from worker.models.config import ModelConfig

FP8_CAPABILITY = (8, 9)  # of NVIDIA's GPUs, from which on kernels can read and write it


@dataclass(frozen=True)
class KvFormat:
    """dtype of K and V as stored; own_scales: a factor for each token and head lies beside them (INT8), else FP8 is
    stored as it is and the model's dtype too."""

    dtype: torch.dtype
    own_scales: bool = False

    @classmethod
    def of(cls, name: str, model: torch.dtype, *, is_amd: bool = False) -> KvFormat:
        """Of config's kv_dtype for a model in that dtype."""
        if name == "int8":
            return cls(torch.int8, own_scales=True)
        if name == "fp8":
            return cls(torch.float8_e4m3fnuz if is_amd else torch.float8_e4m3fn)
        return cls(model)

    def page_bytes(self, model: ModelConfig, page_size: int) -> int:
        """Of a page over all layers, scales too."""
        entries = 2 * model.num_layers * model.num_kv_heads * page_size
        return entries * (model.head_dim * self.dtype.itemsize + 4 * self.own_scales)

    def pages(self, model: ModelConfig, count: int, page_size: int, device: torch.device) -> Tensor:
        """[layers, count, 2, Hkv, page_size, D], with anything in it."""
        shape = (model.num_layers, count, 2, model.num_kv_heads, page_size, model.head_dim)
        return torch.empty(shape, dtype=self.dtype, device=device)

    def scales(self, model: ModelConfig, count: int, page_size: int, device: torch.device) -> KvScales | None:
        """What goes with those pages: [layers, count, 2, Hkv, page_size] fp32, a pair for all, or None."""
        if self.own_scales:
            shape = (model.num_layers, count, 2, model.num_kv_heads, page_size)
            return torch.empty(shape, dtype=torch.float32, device=device)
        return (1.0, 1.0) if self.dtype.itemsize == 1 else None
