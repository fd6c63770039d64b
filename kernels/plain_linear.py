"""The product with a weight in the model's dtype, of a backend that does something about few rows, or about order."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_FIXED_ROWS = 64  # of a block where bits count; not tuned


class PlainLinear(Protocol):
    """plain_linear(x, weight, bias=None, out=None, fixed=False) -> out.

    x [T, K], weight [N, K], bias [N] or None, all model dtype; out [T, N], a new tensor if none is given. fixed: a
    row's bits don't depend on how many rows there are, nor on where it stands.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        /,
        *,
        out: Tensor | None = None,
        fixed: bool = False,
    ) -> Tensor: ...


def plain_linear_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, /, *, out: Tensor | None = None, fixed: bool = False
) -> Tensor:
    """Reference: see PlainLinear. A library picks its product by the number of rows, so where bits count rows go
    through in blocks of one size, the last one padded: every row meets the same product."""
    if fixed:
        return _in_blocks(x, weight, bias, out)
    if out is None:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)  # what F.linear calls too
    return torch.addmm(bias, x, weight.t(), out=out)


def _in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    T = x.shape[0]
    if out is None:
        out = torch.empty(T, weight.shape[0], dtype=x.dtype, device=x.device)
    for start in range(0, T, _FIXED_ROWS):
        rows = min(_FIXED_ROWS, T - start)
        block = x[start : start + rows]
        if rows < _FIXED_ROWS:
            block = F.pad(block, (0, 0, 0, _FIXED_ROWS - rows))
        out[start : start + rows] = F.linear(block, weight, bias)[:rows]
    return out
