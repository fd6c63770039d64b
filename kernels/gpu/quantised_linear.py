"""Products with weights of 8 or 4 bits, for few rows: see kernels/quantised_linear.py.

With few rows the weight's bytes are the cost, so K is split over programs until the card is full, and the parts are
added in order by a second kernel: no atomics, the same bits each time. How K is split depends on the weight's shape
alone, and up to ROWS rows take one tile size, so a row has the same bits among any number of others up to that.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.architectures import EXTRA, LAUNCH_PROGRAMS, Architecture, architecture
from kernels.quantised_linear import QuantisedWeight

BLOCK_N = 64
ROWS = 64
"""Most rows of the small tile; more take a larger one, and at some hundred a product in the model's dtype is faster."""


def quantised_linear(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None = None, /, *, out: Tensor | None = None
) -> Tensor:
    """See QuantisedLinear. Groups are multiples of 32 inputs."""
    return launch(x, weight, bias, out, architecture(x.device))


def launch(x: Tensor, weight: QuantisedWeight, bias: Tensor | None, out: Tensor | None, kind: Architecture) -> Tensor:
    """`quantised_linear` with the launch parameters of `kind`."""
    (T, K), N = x.shape, weight.scales.shape[1]
    if out is None:
        out = torch.empty(T, N, dtype=x.dtype, device=x.device)
    for tensor in (x, weight.codes, weight.scales, weight.zeros):
        assert tensor is None or tensor.is_contiguous()
    assert out.is_contiguous()
    assert weight.in_features == K, f"x has {K} inputs, the weight {weight.in_features}"
    assert weight.group % 32 == 0, f"groups of {weight.group} inputs; the kernel takes multiples of 32"
    if not T:
        return out
    block_k = 64 if weight.group % 64 == 0 else 32
    rows = 16 if T <= ROWS else 64
    columns = triton.cdiv(N, BLOCK_N)
    steps = triton.cdiv(K, block_k)
    splits = max(1, min(LAUNCH_PROGRAMS[kind] // columns, steps // 8, 16))
    per_split = triton.cdiv(steps, splits) * block_k
    splits = triton.cdiv(K, per_split)
    parts = torch.empty(splits, T, N, dtype=torch.float32, device=x.device)
    _product[(columns, triton.cdiv(T, rows), splits)](
        x, weight.codes, weight.scales, weight.zeros, parts, T, N, K, per_split,
        GROUP=weight.group, BITS=weight.bits, ZEROS=weight.zeros is not None, BLOCK_M=rows, BLOCK_N=BLOCK_N,
        BLOCK_K=block_k, num_warps=4, num_stages=3 if kind is not Architecture.GFX942 else 2, enable_fp_fusion=False,
        **EXTRA[kind],
    )  # fmt: skip
    _add_parts[(T, triton.cdiv(N, 1024))](
        parts, bias, out, T, N, splits, BIAS=bias is not None, BLOCK=1024, num_warps=4, enable_fp_fusion=False
    )
    return out


@triton.jit(do_not_specialize=["T"])
def _product(
    x_ptr,  # [T, K]
    codes_ptr,  # [K, N] int8 or [K / 8, N] int32
    scales_ptr,  # [K / GROUP, N]
    zeros_ptr,  # [K / GROUP, N] or None
    parts_ptr,  # [splits, T, N] fp32
    T,
    N,
    K,
    per_split,  # inputs of a split
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # divides GROUP: a tile has one scale a column
):
    """Grid (N / BLOCK_N, T / BLOCK_M, splits). Weights in fp32, rounded to the model's dtype; sums in fp32."""
    split = tl.program_id(2)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < N
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    x_row = x_ptr + row.to(tl.int64)[:, None] * K  # [BLOCK_M, 1]
    for start in tl.range(split * per_split, tl.minimum((split + 1) * per_split, K), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        real = k < K
        x = tl.load(x_row + k[None, :], mask=(row < T)[:, None] & real[None, :], other=0.0)
        mask = real[:, None] & inside[None, :]
        if BITS == 4:
            word = tl.load(codes_ptr + (k // 8).to(tl.int64)[:, None] * N + column[None, :], mask=mask, other=0)
            code = (word >> ((k % 8) * 4)[:, None]) & 15  # [BLOCK_K, BLOCK_N]
        else:
            code = tl.load(codes_ptr + k.to(tl.int64)[:, None] * N + column[None, :], mask=mask, other=0)
        beside = start // GROUP * N + column
        weight = code.to(tl.float32)
        if ZEROS:
            weight = weight - tl.load(zeros_ptr + beside, mask=inside, other=0.0).to(tl.float32)[None, :]
        weight = weight * tl.load(scales_ptr + beside, mask=inside, other=0.0).to(tl.float32)[None, :]
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    place = (split.to(tl.int64) * T + row)[:, None] * N + column[None, :]
    tl.store(parts_ptr + place, total, mask=(row < T)[:, None] & inside[None, :])


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
