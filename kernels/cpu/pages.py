"""What pages of K/V the C kernels take: C sees bare pointers, so dtypes and layout are checked here."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.kv_scales import KvScales


def expect_pages(kv: Tensor, scales: KvScales | None, model: torch.dtype) -> None:
    """Assert that kv [..., pages, 2, Hkv, page_size, D] is in the model's dtype and scales None; or int8, with scales
    [..., pages, 2, Hkv, page_size] fp32, one for each token and head. Both in one piece."""
    assert kv.is_contiguous(), f"a tensor of shape {tuple(kv.shape)} is not contiguous"
    if scales is None:
        assert kv.dtype == model, f"kernels for {model} were given {kv.dtype}"
        return
    assert isinstance(scales, Tensor), "C has no K/V with one scale for all"
    assert (kv.dtype, scales.dtype) == (torch.int8, torch.float32), f"pages of {kv.dtype}, scales of {scales.dtype}"
    assert scales.is_contiguous()
    assert scales.shape == kv.shape[:-1], f"scales of shape {tuple(scales.shape)} beside {tuple(kv.shape)}"
