"""Products with weights in the model's dtype: see kernels/plain_linear.py.

The library's products are the fastest there are from two rows on. One row is no matrix: its product reads each weight
once and multiplies it once, and a program for each output, without matrix instructions, reads faster than the library's
tiles (figures: ops/bench/LOG.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.plain_linear import plain_linear_torch

BLOCK = 1024  # weights that 128 threads read at once, 16 bytes each
_ALIGNED = 16  # bytes


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, /, *, out: Tensor | None = None) -> Tensor:
    """See PlainLinear."""
    (T, K), N = x.shape, weight.shape[0]
    if T != 1 or weight.element_size() != 2 or K * 2 % _ALIGNED:
        return plain_linear_torch(x, weight, bias, out=out)
    if out is None:
        out = torch.empty(1, N, dtype=x.dtype, device=x.device)
    for tensor in (x, weight, out):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % _ALIGNED == 0, "a row's product takes tensors that begin at a multiple of 16 bytes"
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
