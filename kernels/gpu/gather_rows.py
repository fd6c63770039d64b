"""The rows whose logits are wanted: see kernels/gather_rows.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def gather_rows(x: Tensor, index: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """See GatherRows."""
    L, hidden = index.shape[0], x.shape[1]
    if out is None:
        out = torch.empty(L, hidden, dtype=x.dtype, device=x.device)
    assert x.is_contiguous()
    assert out.is_contiguous()
    if L:
        _gather_rows[(L, triton.cdiv(hidden, BLOCK))](
            x, index, out, hidden, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False
        )
    return out


@triton.jit
def _gather_rows(
    x_ptr,  # [T, hidden]
    index_ptr,  # [L] int64
    out_ptr,  # [L, hidden]
    hidden,
    BLOCK: tl.constexpr,
):
    """Grid (L, hidden / BLOCK): a copy."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index_ptr + row)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    tl.store(out_ptr + row * hidden + column, tl.load(x_ptr + source * hidden + column, mask=inside), mask=inside)
