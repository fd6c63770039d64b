"""SiLU(gate) * up over a fused gate-up projection (SwiGLU: Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_SERIAL = 32_767  # most elements that torch's elementwise loops give to one thread in one piece


class SiluMul(Protocol):
    """silu_mul(gate_up, out=None) -> out.

    out[t, i] = silu(gate_up[t, i]) * gate_up[t, I + i]
    gate_up [T, 2*I] model dtype (may be overwritten); out [T, I] model dtype. The activation is rounded to the model
    dtype before the product, as `transformers` does. out is a new tensor if none is given.
    """

    def __call__(self, gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor: ...


def silu_mul_torch(gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """Reference: see SiluMul.

    Takes so many rows at a time that no row is cut between threads: the last elements of a piece come from the scalar
    exponential, which differs from the vectorised one in its last bit, and so a row would depend on its neighbours.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if out is None and gate.numel() <= _SERIAL:
        return F.silu(gate).mul_(up)
    if out is None:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    rows = max(1, _SERIAL // gate.shape[1])
    for start in range(0, len(gate), rows):
        some = slice(start, start + rows)
        torch.ops.aten.silu.out(gate[some], out=out[some])
    return out.mul_(up)
