"""Rotary tables: which angle a position turns each pair of a head by.

`llama3` is the scaling of Llama 3.1 (Llama Team 2024, arXiv 2407.21783): long wavelengths are stretched by `factor`,
short ones kept, those between blended.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.models.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """[head_dim / 2] fp32: radians a position."""
    freq = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.type == "linear":
        return freq / rope.factor
    if rope.type == "llama3":
        wavelength = 2 * math.pi / freq
        low, high = rope.original_max_len / rope.low_freq_factor, rope.original_max_len / rope.high_freq_factor
        share = (rope.original_max_len / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blended = (1 - share) * freq / rope.factor + share * freq
        scaled = torch.where(wavelength > low, freq / rope.factor, freq)
        return torch.where((wavelength <= low) & (wavelength >= high), blended, scaled)
    return freq


def cos_sin_table(rope: RopeConfig, head_dim: int, max_len: int) -> Tensor:
    """[max_len, head_dim] fp32: cos in the first half of the last axis, sin in the second."""
    angles = torch.outer(torch.arange(max_len).float(), inverse_frequencies(rope, head_dim))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
