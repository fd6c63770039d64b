"""Products with weights of 8 or 4 bits (weight only: activations stay in the model's dtype).

    y[t, n] = sum_k x[t, k] * w[k, n] + bias[n],   w[k, n] = (code[k, n] - zero[k // group, n]) * scale[k // group, n]

One layout here, to which GPTQ (Frantar et al., arXiv 2210.17323) and AWQ (Lin et al., arXiv 2306.00978) checkpoints are
repacked at load. Not yet joined to Linear: no checkpoint here is read in these formats so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of eight columns, the nibble of an AWQ word that each lies in


@dataclass(frozen=True)
class QuantisedWeight:
    """K inputs, N outputs.

    codes   [K, N] int8, or of 4 bits [K / 8, N] int32: nibble i of word j is row 8 * j + i, 0 to 15
    scales  [K / group, N] model dtype
    zeros   [K / group, N] model dtype, whole numbers, or None: 0
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int

    @property
    def in_features(self) -> int:
        """K."""
        return self.codes.shape[0] * (8 if self.bits == 4 else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.in_features // self.scales.shape[0]

    @classmethod
    def of(cls, weight: Tensor, bits: int, group: int | None = None) -> QuantisedWeight:
        """weight [N, K] rounded to the nearest code: 8 bits around zero, 4 bits between a group's least and greatest.

        Raises ValueError if K is no multiple of the group, or the group of 8.
        """
        N, K = weight.shape
        group = group or K
        if K % group or group % 8:
            raise ValueError(f"a group must divide the {K} inputs and be a multiple of 8; got {group}")
        parts = weight.float().t().reshape(K // group, group, N)
        if bits == 8:
            scales = (parts.abs().amax(1) / 127).clamp(min=1e-12).to(weight.dtype)
            codes = (parts / scales.float().unsqueeze(1)).round().clamp(-127, 127)
            return cls(codes.reshape(K, N).to(torch.int8).contiguous(), scales.contiguous(), None, 8)
        low, high = parts.amin(1).clamp(max=0), parts.amax(1).clamp(min=0)
        scales = ((high - low) / 15).clamp(min=1e-12).to(weight.dtype)
        zeros = (-low / scales.float()).round().clamp(0, 15)
        codes = (parts / scales.float().unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15)
        return cls(_packed(codes.reshape(K, N).int()), scales.contiguous(), zeros.to(weight.dtype).contiguous(), 4)

    @classmethod
    def from_gptq(cls, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> QuantisedWeight:
        """qweight [K / 8, N] int32, qzeros [K / group, N / 8] int32 (a zero is stored as one less), scales."""
        zeros = _nibbles(qzeros).flatten(1) + 1
        return cls(qweight.contiguous(), scales.contiguous(), zeros.to(scales.dtype), 4)

    @classmethod
    def from_awq(cls, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> QuantisedWeight:
        """qweight [K, N / 8] int32, qzeros [K / group, N / 8] int32, both with columns in AWQ's order, scales."""
        places = list(_AWQ_PLACES)
        codes, zeros = _nibbles(qweight)[..., places].flatten(1), _nibbles(qzeros)[..., places].flatten(1)
        return cls(_packed(codes), scales.contiguous(), zeros.to(scales.dtype), 4)

    def whole(self) -> Tensor:
        """w [K, N] model dtype, rounded once."""
        if self.bits == 8:
            codes = self.codes.float()
        else:
            codes = _nibbles(self.codes).permute(0, 2, 1).reshape(self.in_features, -1).float()
        parts = codes.view(self.scales.shape[0], self.group, -1)
        if self.zeros is not None:
            parts = parts - self.zeros.float().unsqueeze(1)
        return (parts * self.scales.float().unsqueeze(1)).view(codes.shape).to(self.scales.dtype)


class QuantisedLinear(Protocol):
    """quantised_linear(x, weight, bias=None, out=None) -> out.

    x [T, K] model dtype; bias [N] model dtype or None; out [T, N] model dtype, a new tensor if none is given.
    w is rounded to the model dtype before the product, sums are fp32 and rounded once.
    """

    def __call__(
        self, x: Tensor, weight: QuantisedWeight, bias: Tensor | None = None, /, *, out: Tensor | None = None
    ) -> Tensor: ...


def quantised_linear_torch(
    x: Tensor, weight: QuantisedWeight, bias: Tensor | None = None, /, *, out: Tensor | None = None
) -> Tensor:
    """Reference: see QuantisedLinear. Makes the whole weight anew each time."""
    wide = x.float() @ weight.whole().float()
    if bias is not None:
        wide += bias.float()
    return wide.to(x.dtype) if out is None else out.copy_(wide)


def _nibbles(words: Tensor) -> Tensor:
    """[..., 8] int32, 0 to 15, of int32 words: the lowest four bits first."""
    shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts) & 15


def _packed(codes: Tensor) -> Tensor:
    """codes [K, N] of 0 to 15 -> [K / 8, N] int32."""
    K, N = codes.shape
    shifts = torch.arange(0, 32, 4, device=codes.device).view(1, 8, 1)
    words = (codes.view(K // 8, 8, N).long() << shifts).sum(1)  # [K / 8, N], up to 2^32 - 1
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
