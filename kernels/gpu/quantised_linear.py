"""Products with weights of 8 or 4 bits: see kernels/quantised_linear.py.

With few rows the weight's bytes are the cost, so codes become numbers in the product's own tiles, K is split over
programs until the card is full, and the parts are added in order by a second kernel: no atomics, the same bits each
time. How K is split depends on the weight's shape alone; with `fixed` all rows go in tiles of one size, so that a row
has the same bits among any number of others.

With many rows the product is the cost, and each tile of rows would make the numbers again: past a number of rows that
the table by architecture has (WEIGHT_ROWS) the weight is written out once, in the model's dtype, and multiplied by the
library. Nothing waits for the device either way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.architectures import EXTRA, LAUNCH_PROGRAMS, WEIGHT_ROWS, Architecture, architecture
from kernels.quantised_linear import QuantisedWeight

BLOCK_N = 64
SMALL, LARGE = 16, 64
"""Rows of a tile: of matrix instructions at least, and for more. Each tile makes its numbers from codes by itself."""


def quantised_linear(
    x: Tensor,
    weight: QuantisedWeight,
    bias: Tensor | None = None,
    /,
    *,
    out: Tensor | None = None,
    fixed: bool = False,
) -> Tensor:
    """See QuantisedLinear. Groups are multiples of 32 inputs, or all of them."""
    return launch(x, weight, bias, out, architecture(x.device), fixed=fixed)


def launch(
    x: Tensor,
    weight: QuantisedWeight,
    bias: Tensor | None,
    out: Tensor | None,
    kind: Architecture,
    *,
    fixed: bool = False,
) -> Tensor:
    """`quantised_linear` with the launch parameters of `kind`."""
    (T, K), N = x.shape, weight.out_features
    if out is None:
        out = torch.empty(T, N, dtype=x.dtype, device=x.device)
    for tensor in (x, weight.codes, weight.scales, weight.zeros):
        assert tensor is None or tensor.is_contiguous()
    assert out.is_contiguous()
    assert weight.in_features == K, f"x has {K} inputs, the weight {weight.in_features}"
    assert fits(weight.group, K), f"groups of {weight.group} inputs; the kernel takes multiples of 32"
    if not T:
        return out
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    if WEIGHT_ROWS[kind][weight.bits] < T and not fixed:
        whole = whole_weight(weight, x.dtype)
        return torch.mm(x, whole, out=out) if bias is None else torch.addmm(bias, x, whole, out=out)
    _launch_tiles(x, weight, bias, out, kind, rows=SMALL if T <= SMALL and not fixed else LARGE)
    return out


def fits(group: int, inputs: int) -> bool:
    """Whether the kernels take groups of this size: no tile has two scales of a column."""
    return group % 32 == 0 or group == inputs


def _launch_tiles(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None, out: Tensor, kind: Architecture, rows: int
) -> None:
    (T, K), N = x.shape, weight.out_features
    block_k = 64 if weight.group % 64 == 0 else 32
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


def whole_weight(weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [K, N] in `dtype`, its inputs as they are stored."""
    K, N = weight.in_features, weight.out_features
    whole = torch.empty(K, N, dtype=dtype, device=weight.codes.device)
    _whole[(triton.cdiv(N, 128), triton.cdiv(K, 32))](
        weight.codes, weight.scales, weight.zeros, whole, N, K, GROUP=weight.group, BITS=weight.bits,
        ZEROS=weight.zeros is not None, BLOCK_N=128, BLOCK_K=32, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return whole


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
    BLOCK_K: tl.constexpr,  # divides GROUP, or there is one group: a tile has one scale a column
):
    """Grid (N / BLOCK_N, T / BLOCK_M, splits). Weights in fp32, rounded to the model's dtype; sums in fp32."""
    split = tl.program_id(2)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    x_row = x_ptr + row.to(tl.int64)[:, None] * K  # [BLOCK_M, 1]
    for start in tl.range(split * per_split, tl.minimum((split + 1) * per_split, K), BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_row + k[None, :], mask=(row < T)[:, None] & (k < K)[None, :], other=0.0)
        weight = _tile(codes_ptr, scales_ptr, zeros_ptr, k, column, start // GROUP, N, K, BITS, ZEROS)
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    place = (split.to(tl.int64) * T + row)[:, None] * N + column[None, :]
    tl.store(parts_ptr + place, total, mask=(row < T)[:, None] & (column < N)[None, :])


@triton.jit
def _tile(codes_ptr, scales_ptr, zeros_ptr, k, column, group, N, K, BITS: tl.constexpr, ZEROS: tl.constexpr):
    """The weight [k, column] in fp32, of inputs that lie in one group; 0 beyond N, anything beyond K."""
    inside = column < N
    mask = (k < K)[:, None] & inside[None, :]
    if BITS == 4:
        word = tl.load(codes_ptr + (k // 8).to(tl.int64)[:, None] * N + column[None, :], mask=mask, other=0)
        code = (word >> ((k % 8) * 4)[:, None]) & 15
    else:
        code = tl.load(codes_ptr + k.to(tl.int64)[:, None] * N + column[None, :], mask=mask, other=0)
    beside = group * N + column
    weight = code.to(tl.float32)
    if ZEROS:
        weight = weight - tl.load(zeros_ptr + beside, mask=inside, other=0.0).to(tl.float32)[None, :]
    return weight * tl.load(scales_ptr + beside, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _whole(
    codes_ptr,  # [K, N] int8 or [K / 8, N] int32
    scales_ptr,  # [K / GROUP, N]
    zeros_ptr,  # [K / GROUP, N] or None
    whole_ptr,  # [K, N]
    N,
    K,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ZEROS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # divides GROUP, or there is one group
):
    """Grid (N / BLOCK_N, K / BLOCK_K): codes to numbers."""
    start = tl.program_id(1) * BLOCK_K
    k = start + tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight = _tile(codes_ptr, scales_ptr, zeros_ptr, k, column, start // GROUP, N, K, BITS, ZEROS)
    place = k.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(whole_ptr + place, weight.to(whole_ptr.dtype.element_ty), mask=(k < K)[:, None] & (column < N)[None, :])


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
