"""FP8 products: rows rounded to FP8 here, the product itself torch's (`_scaled_mm`). See kernels/fp8_linear.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_linear import LEAST, Fp8Weight

_FIXED_ROWS = 64  # of a block where bits count; the library picks its product by the number of rows


def fp8_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None, /, *, fixed: bool = False) -> Tensor:
    """See Fp8Linear. x bf16, which is what scales of rows give; K and N multiples of 16."""
    assert x.shape[1] == weight.in_features, f"x has {x.shape[1]} inputs, the weight {weight.in_features}"
    codes, scales = quantised_rows(x, weight.codes.dtype)
    if not fixed:
        return _product(codes, scales, weight, bias, x.dtype)
    out = torch.empty(len(x), weight.out_features, dtype=x.dtype, device=x.device)
    block, block_scales = torch.zeros_like(codes[:1]).repeat(_FIXED_ROWS, 1), scales.new_ones(_FIXED_ROWS, 1)
    for start in range(0, len(x), _FIXED_ROWS):
        rows = min(_FIXED_ROWS, len(x) - start)
        block[:rows], block_scales[:rows] = codes[start : start + rows], scales[start : start + rows]
        out[start : start + rows] = _product(block, block_scales, weight, bias, x.dtype)[:rows]
    return out


def _product(codes: Tensor, scales: Tensor, weight: Fp8Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(
        codes,
        weight.codes.t(),
        scale_a=scales,
        scale_b=weight.scales.unsqueeze(0),
        bias=bias,
        out_dtype=dtype,
    )


def quantised_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, K] -> codes [T, K] of dtype, scales [T, 1] fp32: as quantised_rows_torch."""
    T, K = x.shape
    assert x.is_contiguous()
    codes, scales = torch.empty_like(x, dtype=dtype), torch.empty(T, 1, dtype=torch.float32, device=x.device)
    if T:
        greatest = torch.finfo(dtype).max
        _rows[(T,)](
            x, codes, scales, K, GREATEST=greatest, LEAST=LEAST, BLOCK=4096, num_warps=8, enable_fp_fusion=False
        )
    return codes, scales


@triton.jit
def _rows(
    x_ptr,  # [T, K]
    codes_ptr,  # [T, K] FP8
    scales_ptr,  # [T] fp32
    K,
    GREATEST: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T,): a row twice, first for its greatest, then for its codes. What is no number stays none."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    most = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, K, BLOCK):
        x = tl.load(x_ptr + row * K + start + at, mask=start + at < K, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(x))
    greatest = tl.maximum(tl.max(most, 0), LEAST)
    factor = tl.div_rn(GREATEST, greatest)
    for start in tl.range(0, K, BLOCK):
        x = tl.load(x_ptr + row * K + start + at, mask=start + at < K, other=0.0).to(tl.float32)
        tl.store(codes_ptr + row * K + start + at, (x * factor).to(codes_ptr.dtype.element_ty), mask=start + at < K)
    tl.store(scales_ptr + row, tl.div_rn(greatest, GREATEST))
