"""GELU(gate) * up over a fused gate-up projection (GeGLU: Shazeer 2020, arXiv 2002.05202), by the tanh formula."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class GeluMul(Protocol):
    """gelu_mul(gate_up, out=None) -> out.

    out[t, i] = gelu(gate_up[t, i]) * gate_up[t, I + i]
    gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
    gate_up [T, 2*I] model dtype; out [T, I] model dtype, a new tensor if none is given. The activation is rounded to
    the model dtype before the product, as `transformers` does.
    """

    def __call__(self, gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor: ...


def gelu_mul_torch(gate_up: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """Reference: see GeluMul."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.mul(F.gelu(gate, approximate="tanh"), up, out=out)
