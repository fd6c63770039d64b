"""The parts of a product that was split over its inputs, added up: the second kernel of those that split."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def add_parts(parts: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """parts [splits, T, N] fp32 and bias [N] or None, summed first to last in fp32 -> out [T, N] model dtype."""
    splits, T, N = parts.shape
    _add_parts[(T, triton.cdiv(N, BLOCK))](
        parts, bias, out, T, N, splits, BIAS=bias is not None, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False
    )
    return out


@triton.jit(do_not_specialize=["T", "splits"])
def _add_parts(
    parts_ptr,  # [splits, T, N] fp32
    bias_ptr,  # [N] or None
    out_ptr,  # [T, N]
    T,
    N,
    splits,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T, N / BLOCK): the parts in order, then the bias."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.range(0, splits):
        total += tl.load(parts_ptr + (row + split * T) * N + column, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * N + column, total.to(out_ptr.dtype.element_ty), mask=inside)
