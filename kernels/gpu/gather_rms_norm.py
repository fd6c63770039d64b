"""Some rows and their RMSNorm, in one launch: see kernels/gather_rms_norm.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.rms_norm import launch, normed


def gather_rms_norm(
    x: Tensor, index: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See GatherRmsNorm."""
    L, hidden = index.shape[0], x.shape[1]
    rows, out = (torch.empty(L, hidden, dtype=x.dtype, device=x.device) for _ in range(2))
    assert x.is_contiguous()
    assert residual is None or residual.is_contiguous()
    if L:
        _gather_rms_norm[(L,)](
            x, residual, index, weight, rows, out, eps, hidden=hidden, ADD=residual is not None, **launch(hidden)
        )
    return rows, out


@triton.jit
def _gather_rms_norm(
    x_ptr,  # [T, hidden]
    residual_ptr,  # [T, hidden] or None
    index_ptr,  # [L] int64
    weight_ptr,  # [hidden]
    rows_ptr,  # [L, hidden]
    out_ptr,  # [L, hidden]
    eps,
    hidden: tl.constexpr,
    BLOCK: tl.constexpr,  # the power of 2 from hidden up
    ADD: tl.constexpr,
):
    """Grid (L,): a row each."""
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    place = tl.program_id(0).to(tl.int64) * hidden + column
    source = tl.load(index_ptr + tl.program_id(0)) * hidden + column
    dtype = out_ptr.dtype.element_ty
    row = tl.load(x_ptr + source, mask=inside, other=0.0)
    if ADD:
        other = tl.load(residual_ptr + source, mask=inside, other=0.0)
        row = (row.to(tl.float32) + other.to(tl.float32)).to(dtype)
    tl.store(rows_ptr + place, row, mask=inside)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + place, normed(row.to(tl.float32), weight, eps, hidden), mask=inside)
