"""RMSNorm with an optional residual add (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class RmsNorm(Protocol):
    """rms_norm(x, weight, eps, residual=None, out=None) -> out.

    Without residual: out = weight * round(x / sqrt(mean(x^2) + eps)); with it, first residual += x (in place, model
    dtype), then the norm of the sum. x, residual, out [T, hidden] model dtype; weight [hidden] model dtype. The mean
    is taken in fp32 and the normalised value rounded to the model dtype before the weight, as `transformers` does.
    out is a new tensor if none is given; it may be x, nothing else may alias.
    """

    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None, *, out: Tensor | None = None
    ) -> Tensor: ...


def rms_norm_torch(
    x: Tensor, weight: Tensor, eps: float, /, residual: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Reference: see RmsNorm."""
    if residual is not None:
        x = residual.add_(x)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    normed = wide * scale if wide is x else wide.mul_(scale)
    if out is not None:
        return torch.mul(normed.to(weight.dtype), weight, out=out)
    return normed.to(weight.dtype).mul_(weight)
