"""The product with a weight in the model's dtype, of a backend that does something about few rows."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainLinear(Protocol):
    """plain_linear(x, weight, bias=None, out=None) -> out.

    x [T, K], weight [N, K], bias [N] or None, all model dtype; out [T, N], a new tensor if none is given. A row's bits
    may depend on how many rows there are.
    """

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, /, *, out: Tensor | None = None
    ) -> Tensor: ...


def plain_linear_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, /, *, out: Tensor | None = None
) -> Tensor:
    """Reference: see PlainLinear."""
    if out is None:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)  # what F.linear calls too
    return torch.addmm(bias, x, weight.t(), out=out)
