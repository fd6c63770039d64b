"""The product in the fixed order: a row has the same bits among any number of rows. See kernels/plain_linear.py.

Inputs are cut in segments, by the weight's shape alone. A segment's products are summed one matrix instruction after
the other, and segments are added first to last, in fp32. Outputs are the rows of every tile, so that on Hopper all
tiles are made of the same instructions, only with more or fewer columns; what a column is added up from depends on
nothing else. Where tiles alone don't fill the card each segment is a program and a second kernel adds them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.add_parts import add_parts
from kernels.gpu.architectures import EXTRA, FIXED_PRODUCT, Architecture, ProductLaunch, architecture

UNIT = 128
"""Inputs that segments are made of; tiles of K divide it."""
LEAST_UNITS, MOST_SEGMENTS = 4, 4
_FEW = 66  # programs: one for every second multiprocessor of the largest card; with no more, segments are shared out


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel multiplies these: elements of two bytes, outputs in multiples of 64, inputs of UNIT."""
    N, K = weight.shape
    return x.element_size() == 2 and N % 64 == 0 and K % UNIT == 0


def segments(N: int, K: int) -> int:
    """In how many a weight's inputs are cut: those of weights that few rows would leave half a card idle with."""
    return max(1, min(MOST_SEGMENTS, K // UNIT // LEAST_UNITS)) if N // 64 <= _FEW else 1


def fixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, /, *, out: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] as `takes` has them -> [T, N]: `out`, or a new tensor."""
    kind = architecture(x.device)
    launch = next(launch for most, launch in FIXED_PRODUCT[kind] if most is None or x.shape[0] <= most)
    return launched(x, weight, bias, out, launch, kind)


def launched(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None, launch: ProductLaunch, kind: Architecture
) -> Tensor:
    """`fixed_linear` with one launch."""
    (T, K), N = x.shape, weight.shape[0]
    if out is None:
        out = torch.empty(T, N, dtype=x.dtype, device=x.device)
    for tensor in (x, weight, out):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 16 == 0, "this product takes tensors that begin at a multiple of 16 bytes"
    if not T:
        return out
    count = segments(N, K)
    per_segment = triton.cdiv(K // UNIT, count)
    columns, rows = triton.cdiv(N, launch.outputs), triton.cdiv(T, launch.rows)
    split = count > 1 and columns * rows <= _FEW
    parts = torch.empty(count, T, N, dtype=torch.float32, device=x.device) if split else None
    _fixed[(columns * rows, count if split else 1)](
        x, weight, bias, out, parts, T, N, K, per_segment, rows, columns,
        BIAS=bias is not None, SPLIT=split, ONE=split or count == 1, ROWS=launch.rows, BLOCK_N=launch.outputs,
        BLOCK_K=launch.inputs, UNIT=UNIT, TOGETHER=8, EVEN=N % launch.outputs == 0, num_warps=launch.warps,
        num_stages=launch.stages, enable_fp_fusion=False, **EXTRA[kind],
    )  # fmt: skip
    return out if parts is None else add_parts(parts, bias, out)


@triton.jit(do_not_specialize=["T", "per_segment", "row_tiles", "column_tiles"])
def _fixed(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N] or None
    out_ptr,  # [T, N]
    parts_ptr,  # [segments, T, N] fp32 where SPLIT, or None
    T,
    N,
    K,
    per_segment,  # units
    row_tiles,
    column_tiles,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    ONE: tl.constexpr,  # a program has one segment
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNIT: tl.constexpr,  # inputs; BLOCK_K divides it
    TOGETHER: tl.constexpr,  # tiles of rows that run beside each other and share tiles of weights
    EVEN: tl.constexpr,  # BLOCK_N divides N
):
    """Grid (tiles, segments or 1). A part of a segment where SPLIT, else the whole sum."""
    tile, segment = tl.program_id(0), tl.program_id(1)
    group = tile // (TOGETHER * column_tiles)
    first = group * TOGETHER
    high = tl.minimum(row_tiles - first, TOGETHER)
    within = tile - group * TOGETHER * column_tiles
    row = (first + within % high) * ROWS + tl.arange(0, ROWS)
    output = within // high * BLOCK_N + tl.arange(0, BLOCK_N)
    real = row < T
    inside = output < N
    weights = weight_ptr + output.to(tl.int64)[:, None] * K
    xs = x_ptr + row.to(tl.int64)[None, :] * K
    steps: tl.constexpr = UNIT // BLOCK_K
    if ONE:
        begin = segment * per_segment
        end = tl.minimum(begin + per_segment, K // UNIT)
        total = _chain(weights, xs, begin * steps, end * steps, inside, real, ROWS, BLOCK_N, BLOCK_K, EVEN)
    else:
        total = tl.zeros([BLOCK_N, ROWS], tl.float32)
        for begin in tl.range(0, K // UNIT, per_segment):
            end = tl.minimum(begin + per_segment, K // UNIT)
            total += _chain(weights, xs, begin * steps, end * steps, inside, real, ROWS, BLOCK_N, BLOCK_K, EVEN)
    place = row.to(tl.int64)[:, None] * N + output[None, :]
    stored = real[:, None] & inside[None, :]
    if SPLIT:
        tl.store(parts_ptr + segment.to(tl.int64) * T * N + place, tl.trans(total), mask=stored)
    else:
        if BIAS:
            total += tl.load(bias_ptr + output, mask=inside, other=0.0).to(tl.float32)[:, None]
        tl.store(out_ptr + place, tl.trans(total).to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def _chain(
    weights, xs, first, last, inside, real, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The products of steps [first, last) of BLOCK_K inputs, summed one after the other."""
    part = tl.zeros([BLOCK_N, ROWS], tl.float32)
    for step in tl.range(first, last):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        if EVEN:
            weight = tl.load(weights + k[None, :])
        else:
            weight = tl.load(weights + k[None, :], mask=inside[:, None], other=0.0)
        x = tl.load(xs + k[:, None], mask=real[None, :], other=0.0)
        part = tl.dot(weight, x, part, input_precision="ieee")
    return part
