"""Products with weights in the model's dtype: see kernels/plain_linear.py.

One row is no matrix: its product reads each weight once and multiplies it once, and a program for each output, without
matrix instructions, reads faster than the library's tiles. Between 9 and 16 rows the library reads large weights slower
than with fewer, and a tile of 16 rows that keeps four copies of weights under way does not. Else the library's products
are the fastest there are (figures: ops/bench/LOG.md, 42). The fixed order is fixed_linear.py's.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.architectures import EXTRA, FEW_STAGES, architecture
from kernels.gpu.fixed_linear import fixed_linear, takes
from kernels.plain_linear import plain_linear_torch

FEW, FEW_N, FEW_K = 16, 64, 128  # rows, outputs and inputs of a tile
FEW_OUTPUTS = 264 * FEW_N  # two programs for each multiprocessor: with fewer the library splits K, and is faster
BLOCK = 1024  # weights that 128 threads read at once, 16 bytes each
_ALIGNED = 16  # bytes


def plain_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, /, *, out: Tensor | None = None, fixed: bool = False
) -> Tensor:
    """See PlainLinear."""
    if fixed:
        product = fixed_linear if takes(x, weight) else partial(plain_linear_torch, fixed=True)
        return product(x, weight, bias, out=out)
    (T, K), N = x.shape, weight.shape[0]
    few = 8 < T <= FEW and N >= FEW_OUTPUTS and N % FEW_N == 0 and K % FEW_K == 0
    if weight.element_size() != 2 or K * 2 % _ALIGNED or not (T == 1 or few):
        return plain_linear_torch(x, weight, bias, out=out)
    if out is None:
        out = torch.empty(T, N, dtype=x.dtype, device=x.device)
    for tensor in (x, weight, out):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % _ALIGNED == 0, "these products take tensors that begin at a multiple of 16 bytes"
    if few:
        kind = architecture(x.device)
        _few_rows[(N // FEW_N,)](
            x, weight, bias, out, T, K, N, BIAS=bias is not None, ROWS=FEW, BLOCK_N=FEW_N, BLOCK_K=FEW_K, num_warps=4,
            num_stages=FEW_STAGES[kind], enable_fp_fusion=True, **EXTRA[kind],
        )  # fmt: skip
        return out
    _one_row[(N,)](
        x, weight, bias, out, K, EVEN=K % BLOCK == 0, BIAS=bias is not None, BLOCK=BLOCK, num_warps=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    return out


@triton.jit
def _one_row(
    x_ptr,  # [K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N] or None
    out_ptr,  # [N]
    K,
    EVEN: tl.constexpr,  # BLOCK divides K
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (N,): an output each, summed in fp32."""
    output = tl.program_id(0).to(tl.int64)
    inputs = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, K, BLOCK):
        k = start + inputs
        if EVEN:
            x = tl.load(x_ptr + k)
            weight = tl.load(weight_ptr + output * K + k, eviction_policy="evict_first")
        else:
            x = tl.load(x_ptr + k, mask=k < K, other=0.0)
            weight = tl.load(weight_ptr + output * K + k, mask=k < K, other=0.0, eviction_policy="evict_first")
        sums += x.to(tl.float32) * weight.to(tl.float32)
    total = tl.sum(sums, 0)
    if BIAS:
        total += tl.load(bias_ptr + output).to(tl.float32)
    tl.store(out_ptr + output, total.to(out_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["T"])
def _few_rows(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N] or None
    out_ptr,  # [T, N]
    T,
    K,
    N,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # T or more
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (N / BLOCK_N,). Outputs are the rows of its tile, as matrix instructions take more of those."""
    output = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, inputs = tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    real = row[None, :] < T
    total = tl.zeros([BLOCK_N, ROWS], tl.float32)
    weights = weight_ptr + output.to(tl.int64)[:, None] * K
    for start in tl.range(0, K, BLOCK_K):
        k = start + inputs
        weight = tl.load(weights + k[None, :])
        x = tl.load(x_ptr + row[None, :] * K + k[:, None], mask=real, other=0.0)
        total = tl.dot(weight, x, total, input_precision="ieee")
    if BIAS:
        total += tl.load(bias_ptr + output).to(tl.float32)[:, None]
    place = row.to(tl.int64)[None, :] * N + output[:, None]
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=real)
