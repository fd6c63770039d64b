"""The rows of the hidden states whose logits are wanted: out[l] = x[index[l]]."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class GatherRows(Protocol):
    """gather_rows(x, index) -> out.

    x [T, hidden] model dtype; index [L] int64, 0 <= index < T; out [L, hidden], a new tensor.
    """

    def __call__(self, x: Tensor, index: Tensor, /) -> Tensor: ...


def gather_rows_torch(x: Tensor, index: Tensor, /) -> Tensor:
    """Reference: see GatherRows."""
    return x.index_select(0, index)
