"""RMSNorm with an optional residual add: see kernels/rms_norm.py.

Like all kernels here without a product it is compiled without fused multiply-adds: it rounds where its reference does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """See RmsNorm. The last axis of x is contiguous, residual and out wholly."""
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    assert x.stride(1) == 1
    assert out.is_contiguous()
    assert residual is None or residual.is_contiguous()
    T, hidden = x.shape
    if T:
        _rms_norm[(T,)](
            x, residual, weight, out, x.stride(0), eps, hidden=hidden, ADD=residual is not None, **launch(hidden)
        )
    return out


def launch(hidden: int) -> dict[str, Any]:
    """How a kernel is launched whose programs take a row each."""
    block = triton.next_power_of_2(hidden)
    return {"BLOCK": block, "num_warps": 4 if block < 2048 else 8 if block < 8192 else 16, "enable_fp_fusion": False}


@triton.jit
def normed(x, weight, eps, hidden: tl.constexpr):
    """A row's norm [BLOCK], of weight's dtype; x fp32. The sum of squares over the whole row at once: its order depends
    on nothing."""
    scale = tl.rsqrt(tl.sum(x * x, 0) / hidden + eps)
    dtype = weight.dtype
    return ((x * scale).to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype)


@triton.jit
def _rms_norm(
    x_ptr,  # [T, hidden]
    residual_ptr,  # [T, hidden] or None; x is added to it
    weight_ptr,  # [hidden]
    out_ptr,  # [T, hidden]
    x_stride,
    eps,
    hidden: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of 2 from hidden up
    ADD: tl.constexpr,
):
    """Grid (T,): a row each."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    if ADD:
        place = residual_ptr + row * hidden + column
        total = (x + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(out_ptr.dtype.element_ty)
        tl.store(place, total, mask=inside)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + row * hidden + column, normed(x, weight, eps, hidden), mask=inside)
