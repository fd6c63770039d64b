"""SiLU(gate) * up over a fused gate-up projection (SwiGLU: Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class SiluMul(Protocol):
    """silu_mul(gate_up) -> out.

    out[t, i] = silu(gate_up[t, i]) * gate_up[t, I + i]
    gate_up [T, 2*I] model dtype (may be overwritten); out [T, I] model dtype. The activation is rounded to the model
    dtype before the product, as `transformers` does.
    """

    def __call__(self, gate_up: Tensor, /) -> Tensor: ...


def silu_mul_torch(gate_up: Tensor, /) -> Tensor:
    """Reference: see SiluMul. Works in the first half of gate_up, but returns a contiguous tensor."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
