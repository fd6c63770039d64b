"""The rows of the hidden states whose logits are wanted: out[l] = x[index[l]]."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class GatherRows(Protocol):
    """gather_rows(x, index, out=None) -> out.

    x [T, hidden] model dtype; index [L] int64, 0 <= index < T; out [L, hidden], a new tensor if none is given.
    """

    def __call__(self, x: Tensor, index: Tensor, /, *, out: Tensor | None = None) -> Tensor: ...


def gather_rows_torch(x: Tensor, index: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """Reference: see GatherRows."""
    return torch.index_select(x, 0, index, out=out)
