"""SiLU(gate) * up and GELU(gate) * up: see kernels/silu_mul.py and kernels/gelu_mul.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def silu_mul(gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """See SiluMul."""
    return _launch(gate_up, out, gelu=False)


def gelu_mul(gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """See GeluMul."""
    return _launch(gate_up, out, gelu=True)


def _launch(gate_up: Tensor, out: Tensor | None, *, gelu: bool) -> Tensor:
    T, width = gate_up.shape
    if out is None:
        out = torch.empty(T, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    assert gate_up.is_contiguous()
    assert out.is_contiguous()
    if T:
        _gated[(T, triton.cdiv(width // 2, BLOCK))](
            gate_up, out, width // 2, GELU=gelu, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False
        )
    return out


@triton.jit
def _gated(
    gate_up_ptr,  # [T, 2*I]
    out_ptr,  # [T, I]
    inner,  # I
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (T, I / BLOCK). The activation in fp32, rounded to the model's dtype before the product."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < inner
    gate = tl.load(gate_up_ptr + row * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)  # [BLOCK]
    up = tl.load(gate_up_ptr + row * 2 * inner + inner + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:  # x / 2 * (1 + tanh(y)) is x * sigmoid(2y)
        turned = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    else:
        turned = gate
    dtype = out_ptr.dtype.element_ty
    active = (gate / (1.0 + tl.exp(-turned))).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * inner + column, (active * up).to(dtype), mask=inside)
