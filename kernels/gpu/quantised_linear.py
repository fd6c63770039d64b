"""Products with weights of 8 or 4 bits: see kernels/quantised_linear.py.

With few rows the weight's bytes are the cost, so codes become numbers in the product's own tiles, K is split over
programs until the card is full, and the parts are added in order by a second kernel: no atomics, the same bits each
time. How K is split depends on the weight's shape and the size of tiles; with `fixed` all rows go in tiles of one
size, so that a row has the same bits among any number of others.

There are two kernels. `_blocks`, for bf16 and blocks of 128 inputs on NVIDIA's GPUs, makes two bf16 of two codes by
one or two instructions (a code set into the low bits of 128 is that much more), each word is read once, and a block's
sum is multiplied by its scale. `_product` is for everything else: other dtypes, smaller groups, AMD's GPUs. Triton's
interpreter cannot run instructions, so there `_blocks` makes the same numbers, element by element, by plain integers.

With many rows the product is the cost, and each tile of rows would make the numbers again: past a number of rows that
the table by architecture has (WEIGHT_ROWS) the weight is written out once, in the model's dtype, and multiplied by the
library. Nothing waits for the device either way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.add_parts import add_parts
from kernels.gpu.architectures import EXTRA, LAUNCH_PROGRAMS, WEIGHT_ROWS, Architecture, architecture
from kernels.quantised_linear import QuantisedWeight

BLOCK_N = 64
BLOCK = 128
SMALL, LARGE = 16, 64
"""Rows of a tile: of matrix instructions at least, and for more. Each tile makes its numbers from codes by itself."""

_NIBBLES = tl.constexpr(
    tuple(
        f"{{ .reg .b32 t; shr.u32 t, $1, {shift}; lop3.b32 $0, t, 0x000f000f, 0x43004300, 0xea; }}"
        for shift in (0, 4, 8, 12)
    )
)
_BYTES = tl.constexpr(
    tuple(
        f"{{ .reg .b32 a, b, t; shr.u32 t, $1, {shift}; lop3.b32 a, t, 0x007f007f, 0x43004300, 0xea; "
        "lop3.b32 b, t, 0x00800080, 0x43004300, 0xea; mov.b32 t, 0xbf80bf80; fma.rn.bf16x2 $0, b, t, a; }"
        for shift in (0, 8)
    )
)
"""Of two words in a register the same field of each; 0xea is (a and b) or c."""


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
    rows = SMALL if T <= SMALL and not fixed else LARGE
    if weight.block == BLOCK and x.dtype is torch.bfloat16 and kind is not Architecture.GFX942:
        parts = _launch_blocks(x, weight, kind, rows)
    else:
        parts = _launch_tiles(x, weight, kind, rows)
    return add_parts(parts, bias, out)


def fits(group: int, inputs: int) -> bool:
    """Whether the kernels take groups of this size: no tile has two scales of a column."""
    return group % 32 == 0 or group == inputs


def _launch_blocks(x: Tensor, weight: QuantisedWeight, kind: Architecture, rows: int) -> Tensor:
    """Sums of each split [splits, T, N] fp32. Tiles and splits are those that a sweep on an H200 found (LOG 42)."""
    (T, K), N = x.shape, weight.out_features
    block_n, warps, programs = (
        (64, 4, LAUNCH_PROGRAMS[kind] * 7 // 2) if rows == SMALL else (128, 8, LAUNCH_PROGRAMS[kind])
    )
    columns, blocks = triton.cdiv(N, block_n), K // BLOCK
    per_split = triton.cdiv(blocks, max(1, min(programs // columns, blocks // 4, 16)))
    splits = triton.cdiv(blocks, per_split)
    parts = torch.empty(splits, T, N, dtype=torch.float32, device=x.device)
    _blocks[(columns, triton.cdiv(T, rows), splits)](
        x, weight.codes, weight.scales, weight.zeros, parts, T, N, K, per_split,
        GROUP=weight.group, BITS=weight.bits, ZEROS=weight.zeros is not None, BLOCK_M=rows, BLOCK_N=block_n,
        BLOCK=BLOCK, ASM=isinstance(_blocks, triton.JITFunction), num_warps=warps, num_stages=3,
    )  # fmt: skip
    return parts


def _launch_tiles(x: Tensor, weight: QuantisedWeight, kind: Architecture, rows: int) -> Tensor:
    """Sums of each split [splits, T, N] fp32."""
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
        BLOCK_K=block_k, STORED=weight.block, num_warps=4, num_stages=3 if kind is not Architecture.GFX942 else 2,
        enable_fp_fusion=False, **EXTRA[kind],
    )  # fmt: skip
    return parts


def whole_weight(weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [K, N] in `dtype`, its inputs as they are stored."""
    K, N = weight.in_features, weight.out_features
    whole = torch.empty(K, N, dtype=dtype, device=weight.codes.device)
    _whole[(triton.cdiv(N, 128), triton.cdiv(K, 32))](
        weight.codes, weight.scales, weight.zeros, whole, N, K, GROUP=weight.group, BITS=weight.bits,
        ZEROS=weight.zeros is not None, BLOCK_N=128, BLOCK_K=32, STORED=weight.block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return whole


@triton.jit(do_not_specialize=["T", "per_split"])
def _blocks(
    x_ptr,  # [T, K] bf16
    codes_ptr,  # [K / BLOCK, N, words] int16
    scales_ptr,  # [K / GROUP, N]
    zeros_ptr,  # [K / GROUP, N] or None
    parts_ptr,  # [splits, T, N] fp32
    T,
    N,
    K,
    per_split,  # blocks of a split
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ZEROS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,  # divides GROUP: a block has one scale a column
    ASM: tl.constexpr,
):
    """Grid (N / BLOCK_N, T / BLOCK_M, splits). Outputs are the rows of a tile: matrix instructions take 64 of those and
    8 columns or more. A code less its zero, a whole number up to 256, is exact in bf16."""
    words: tl.constexpr = BLOCK * BITS // 16
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    i = tl.arange(0, words)
    inside = column < N
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in tl.range(split * per_split, tl.minimum((split + 1) * per_split, K // BLOCK)):
        place = codes_ptr + (block * N + column).to(tl.int64)[:, None] * words + i[None, :]
        word = tl.load(place, mask=inside[:, None], other=0)
        beside = block * BLOCK // GROUP * N + column
        scale = tl.load(scales_ptr + beside, mask=inside, other=0.0).to(tl.float32)
        zero = tl.full([BLOCK_N], 128 if BITS == 4 else 0, tl.float32)
        if ZEROS:
            zero += tl.load(zeros_ptr + beside, mask=inside, other=0.0).to(tl.float32)
        part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        x_place = x_ptr + row.to(tl.int64)[None, :] * K + block * BLOCK + i[:, None]
        for field in tl.static_range(16 // BITS):
            number = _nibble(word, field, ASM) if BITS == 4 else _byte(word, field, ASM)
            if BITS == 4 or ZEROS:
                number = _less(number, zero, ASM)
            x = tl.load(x_place + words * field, mask=(row < T)[None, :], other=0.0)
            part = tl.dot(number, x, part)
        total += scale[:, None] * part
    at = (split.to(tl.int64) * T + row)[None, :] * N + column[:, None]
    tl.store(parts_ptr + at, total, mask=(row < T)[None, :] & inside[:, None])


@triton.jit
def _nibble(word, FIELD: tl.constexpr, ASM: tl.constexpr):
    """128 and a nibble of each word, in bf16."""
    if ASM:
        asm: tl.constexpr = _NIBBLES[FIELD]
        return tl.inline_asm_elementwise(asm, "=r,r", [word], dtype=tl.bfloat16, is_pure=True, pack=2)
    return (((word.to(tl.int32) >> (4 * FIELD)) & 15) | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _byte(word, FIELD: tl.constexpr, ASM: tl.constexpr):
    """A byte of each word in bf16: 128 and its low 7 bits, less 128 or, of a negative one, 256."""
    if ASM:
        asm: tl.constexpr = _BYTES[FIELD]
        return tl.inline_asm_elementwise(asm, "=r,r", [word], dtype=tl.bfloat16, is_pure=True, pack=2)
    return (word.to(tl.int32) >> (8 * FIELD)).to(tl.int8).to(tl.float32).to(tl.bfloat16)


@triton.jit
def _less(number, zero, ASM: tl.constexpr):
    """Exact in bf16, two at a time; the interpreter has no bf16 of its own."""
    if ASM:
        return number - zero.to(tl.bfloat16)[:, None]
    return (number.to(tl.float32) - zero[:, None]).to(tl.bfloat16)


@triton.jit(do_not_specialize=["T"])
def _product(
    x_ptr,  # [T, K]
    codes_ptr,  # [K / STORED, N, words] int16
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
    STORED: tl.constexpr,  # inputs of a block of codes
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
        weight = _tile(codes_ptr, scales_ptr, zeros_ptr, k, column, start // GROUP, N, K, BITS, ZEROS, STORED)
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    place = (split.to(tl.int64) * T + row)[:, None] * N + column[None, :]
    tl.store(parts_ptr + place, total, mask=(row < T)[:, None] & (column < N)[None, :])


@triton.jit
def _tile(
    codes_ptr, scales_ptr, zeros_ptr, k, column, group, N, K, BITS: tl.constexpr, ZEROS: tl.constexpr,
    STORED: tl.constexpr,
):  # fmt: skip
    """The weight [k, column] in fp32, of inputs that lie in one group; 0 beyond N, anything beyond K."""
    inside = column < N
    mask = (k < K)[:, None] & inside[None, :]
    words: tl.constexpr = STORED * BITS // 16
    place = ((k // STORED).to(tl.int64)[:, None] * N + column[None, :]) * words + (k % words)[:, None]
    word = tl.load(codes_ptr + place, mask=mask, other=0).to(tl.int32)
    shift = ((k % STORED) // words * BITS)[:, None]
    code = (word >> shift) & 15 if BITS == 4 else (word >> shift).to(tl.int8)
    beside = group * N + column
    weight = code.to(tl.float32)
    if ZEROS:
        weight = weight - tl.load(zeros_ptr + beside, mask=inside, other=0.0).to(tl.float32)[None, :]
    return weight * tl.load(scales_ptr + beside, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _whole(
    codes_ptr,  # [K / STORED, N, words] int16
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
    STORED: tl.constexpr,  # inputs of a block of codes
):
    """Grid (N / BLOCK_N, K / BLOCK_K): codes to numbers."""
    start = tl.program_id(1) * BLOCK_K
    k = start + tl.arange(0, BLOCK_K)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight = _tile(codes_ptr, scales_ptr, zeros_ptr, k, column, start // GROUP, N, K, BITS, ZEROS, STORED)
    place = k.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(whole_ptr + place, weight.to(whole_ptr.dtype.element_ty), mask=(k < K)[:, None] & (column < N)[None, :])
