"""Products of FP8 activations with FP8 weights: a scale for each row of x, found as it comes, and one for each output.

    y[t, n] = s[t] * scale[n] * sum_k a[t, k] * code[n, k] + bias[n]
    s[t] = max_k |x[t, k]| / greatest,   a[t, k] = x[t, k] * (greatest / max_k |x[t, k]|) rounded to FP8

greatest is 448 in e4m3fn, 240 in e4m3fnuz, which AMD's gfx942 multiplies. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LEAST = 1e-12  # in place of the greatest of a row or weight of zeros


@dataclass(frozen=True)
class Fp8Weight:
    """codes [N, K] e4m3, scales [N] fp32."""

    codes: Tensor
    scales: Tensor

    @property
    def in_features(self) -> int:
        """K."""
        return self.codes.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.codes.shape[0]

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> Fp8Weight:
        """weight [N, K] rounded to the nearest code of its row."""
        codes, scales = quantised_rows_torch(weight, dtype)
        return cls(codes, scales.squeeze(1))

    @classmethod
    def beside(cls, parts: Sequence[Fp8Weight]) -> Fp8Weight:
        """The outputs of all parts side by side."""
        # a cat of bytes: not every device has one of FP8
        codes = torch.cat([part.codes.view(torch.uint8) for part in parts])
        return cls(codes.view(parts[0].codes.dtype), torch.cat([part.scales for part in parts]))

    def as_fnuz(self) -> Fp8Weight:
        """e4m3fn as e4m3fnuz: the same bits stand for half the number there, and those of -0 for no number."""
        bits = self.codes.view(torch.int8)
        bits = torch.where(bits == -128, 0, bits).to(torch.int8)
        return Fp8Weight(bits.view(torch.float8_e4m3fnuz), self.scales * 2)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K], rounded once."""
        return (self.codes.float() * self.scales.unsqueeze(1)).to(dtype)


class Fp8Linear(Protocol):
    """fp8_linear(x, weight, bias=None, fixed=False) -> [T, N] model dtype, a new tensor.

    x [T, K] model dtype, bias [N] model dtype or None. Sums are fp32, rounded once.
    fixed: a row's bits do not depend on how many rows there are.
    """

    def __call__(
        self, x: Tensor, weight: Fp8Weight, bias: Tensor | None = None, /, *, fixed: bool = False
    ) -> Tensor: ...


def fp8_linear_torch(x: Tensor, weight: Fp8Weight, bias: Tensor | None = None, /, *, fixed: bool = False) -> Tensor:
    """Reference: see Fp8Linear. fixed: row by row."""
    codes, scales = quantised_rows_torch(x, weight.codes.dtype)
    whole = weight.codes.float().t()
    rows = torch.split(codes.float(), 1) if fixed and len(x) else [codes.float()]
    wide = torch.cat([some @ whole for some in rows])
    wide = wide * (scales * weight.scales)
    if bias is not None:
        wide += bias.float()
    return wide.to(x.dtype)


def quantised_rows_torch(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, K] -> codes [T, K] of dtype, s [T, 1] fp32: see above."""
    most = x.float().abs().amax(1, keepdim=True).clamp(min=LEAST)
    greatest = torch.full_like(most, torch.finfo(dtype).max)  # torch divides numbers by way of a reciprocal: an ulp off
    return (x.float() * (greatest / most)).to(dtype), most / greatest
