"""Some rows and their RMSNorm: tokens looked up in the embedding, and the hidden states whose logits are wanted."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from kernels.rms_norm import RmsNorm, rms_norm_torch


class GatherRmsNorm(Protocol):
    """gather_rms_norm(x, index, weight, eps, residual=None) -> (rows, out).

    rows[l] = x[index[l]], with residual rounded(x[index[l]] + residual[index[l]]); out = rms_norm(rows, weight, eps).
    x, residual [T, hidden] model dtype, unchanged; index [L] int64, 0 <= index < T; weight [hidden] model dtype.
    rows and out are new, [L, hidden] model dtype.
    """

    def __call__(
        self, x: Tensor, index: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


def gathered(rms_norm: RmsNorm) -> GatherRmsNorm:
    """The operation, made of a backend's RMSNorm."""

    def gather_rms_norm(
        x: Tensor, index: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows = x.index_select(0, index)
        if residual is not None:
            rows += residual.index_select(0, index)
        return rows, rms_norm(rows, weight, eps)

    return gather_rms_norm


gather_rms_norm_torch = gathered(rms_norm_torch)
"""Reference: see GatherRmsNorm."""
