"""Weights that mean nothing, made where they are wanted: models of true shapes for benches, without a file of 16 GB."""

from __future__ import annotations

import torch
from torch import Tensor


class RandomWeights:
    """See Weights. Norms are ones, biases zeros, the rest normal and of a size that keeps activations of size 1."""

    def __init__(self, device: torch.device, *, tied: bool, seed: int = 0) -> None:
        """tied: there is no head of its own."""
        self.device, self._tied = device, tied
        self._generator = torch.Generator(device).manual_seed(seed)

    def __contains__(self, name: str) -> bool:
        return not (self._tied and name == "lm_head.weight")

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See Weights."""
        if name.endswith("bias"):
            return torch.zeros(shape, dtype=dtype, device=self.device)
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype, device=self.device)
        weight = torch.empty(shape, dtype=dtype, device=self.device)
        return weight.normal_(0.0, shape[1] ** -0.5, generator=self._generator)

    def refuse_unused(self, prefix: str) -> None:
        """See Weights: there is always just what is asked for."""
