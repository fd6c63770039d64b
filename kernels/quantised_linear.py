"""Products with weights of 8 or 4 bits (weight only: activations stay in the model's dtype).

    y[t, n] = sum_k x[t, order[k]] * w[k, n] + bias[n]
    w[k, n] = (code[k, n] - zero[k // group, n]) * scale[k // group, n]

One layout here, to which GPTQ (Frantar et al., arXiv 2210.17323) and AWQ (Lin et al., arXiv 2306.00978) checkpoints are
repacked at load, and to which weights of the model's dtype can be rounded. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of eight columns, the nibble of an AWQ word that each lies in


@dataclass(frozen=True)
class QuantisedWeight:
    """K inputs, N outputs.

    codes   [K / block, N, words] int16: field j of word i of a block is its row words * j + i; fields are bytes of -128
            to 127 or nibbles of 0 to 15, words = block * bits / 16. A block has 128 rows, or the largest power of two
            that divides a group: one scale an output, and the words of an output lie together
    scales  [K / group, N] bf16, fp16 or fp32
    zeros   [K / group, N] of the same dtype, whole numbers, or None: 0
    order   [K] int64: the column of x that row k is for, or None: k (GPTQ's act-order sorts inputs by their weight)
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    order: Tensor | None = None

    @property
    def in_features(self) -> int:
        """K."""
        return self.codes.shape[0] * self.block

    @property
    def out_features(self) -> int:
        """N."""
        return self.codes.shape[1]

    @property
    def block(self) -> int:
        """Inputs of a block of codes."""
        return self.codes.shape[2] * 16 // self.bits

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
            return cls(_packed(codes.reshape(K, N).int(), 8, group), scales.contiguous(), None, 8)
        low, high = parts.amin(1).clamp(max=0), parts.amax(1).clamp(min=0)
        scales = ((high - low) / 15).clamp(min=1e-12).to(weight.dtype)
        zeros = (-low / scales.float()).round().clamp(0, 15)
        codes = (parts / scales.float().unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15)
        packed = _packed(codes.reshape(K, N).int(), 4, group)
        return cls(packed, scales.contiguous(), zeros.to(weight.dtype).contiguous(), 4)

    @classmethod
    def from_gptq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None = None,
        *,
        bits: int = 4,
        less: int = 1,
    ) -> QuantisedWeight:
        """qweight [K * bits / 32, N] int32, qzeros [K / group, N * bits / 32] int32, scales [K / group, N].

        g_idx: the group of each input [K] int32; in their order unless given. less: how much less than a zero is stored
        for it (1, or 0 in format gptq_v2). Raises ValueError if a group has more or fewer inputs than others.
        """
        groups = scales.shape[0]
        K = qweight.shape[0] * 32 // bits
        zeros = _fields(qzeros, bits).flatten(1) + less
        order = None if g_idx is None else _order(g_idx, K, groups)
        codes = _fields(qweight, bits).permute(0, 2, 1).reshape(K, -1)
        if order is not None:
            codes = codes[order]
        if bits == 4:
            return cls(_packed(codes, 4, K // groups), scales.contiguous(), zeros.to(scales.dtype), 4, order)
        zeros = zeros - 128  # bytes of 0 to 255 become int8: both sides of the difference move
        return cls(
            _packed(codes - 128, 8, K // groups),
            scales.contiguous(),
            zeros.to(scales.dtype) if zeros.any() else None,
            8,
            order,
        )

    @classmethod
    def from_awq(cls, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> QuantisedWeight:
        """qweight [K, N / 8] int32, qzeros [K / group, N / 8] int32, both with columns in AWQ's order, scales."""
        places = list(_AWQ_PLACES)
        codes, zeros = _fields(qweight, 4)[..., places].flatten(1), _fields(qzeros, 4)[..., places].flatten(1)
        packed = _packed(codes, 4, len(codes) // scales.shape[0])
        return cls(packed, scales.contiguous(), zeros.to(scales.dtype), 4)

    @classmethod
    def beside(cls, parts: Sequence[QuantisedWeight]) -> QuantisedWeight:
        """The outputs of all parts side by side. Raises ValueError if they differ in bits, groups or order."""
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts:
            if (part.bits, part.in_features, part.group) != (first.bits, first.in_features, first.group):
                raise ValueError("they differ in bits, inputs or groups")
            if not _same(part.order, first.order):
                raise ValueError("they have their inputs in different orders (act-order)")
        zeros = None
        if any(part.zeros is not None for part in parts):
            zeros = torch.cat([torch.zeros_like(p.scales) if p.zeros is None else p.zeros for p in parts], 1)
        codes, scales = torch.cat([p.codes for p in parts], 1), torch.cat([p.scales for p in parts], 1)
        return cls(codes, scales, zeros, first.bits, first.order)

    def whole(self, dtype: torch.dtype | None = None) -> Tensor:
        """w [K, N] in x's order of inputs, rounded once to dtype (the scales' unless given)."""
        shifts = torch.arange(0, 16, self.bits, device=self.codes.device, dtype=torch.int16)
        fields = self.codes.unsqueeze(2) >> shifts.unsqueeze(1)  # [K / block, N, fields, words]
        fields = fields & 15 if self.bits == 4 else fields.to(torch.int8)
        codes = fields.permute(0, 2, 3, 1).reshape(self.in_features, -1).float()
        parts = codes.view(self.scales.shape[0], self.group, -1)
        if self.zeros is not None:
            parts = parts - self.zeros.float().unsqueeze(1)
        weight = (parts * self.scales.float().unsqueeze(1)).view(codes.shape).to(dtype or self.scales.dtype)
        if self.order is None:
            return weight
        return torch.empty_like(weight).index_copy_(0, self.order, weight)


class QuantisedLinear(Protocol):
    """quantised_linear(x, weight, bias=None, out=None, fixed=False) -> out.

    x [T, K] model dtype; bias [N] model dtype or None; out [T, N] model dtype, a new tensor if none is given.
    w is rounded to the model dtype before the product, or sums of a block are multiplied by its scale, which is closer
    to the formula. Sums are fp32 and rounded once.
    fixed: a row's bits do not depend on how many rows there are.
    """

    def __call__(
        self,
        x: Tensor,
        weight: QuantisedWeight,
        bias: Tensor | None = None,
        /,
        *,
        out: Tensor | None = None,
        fixed: bool = False,
    ) -> Tensor: ...


def quantised_linear_torch(
    x: Tensor,
    weight: QuantisedWeight,
    bias: Tensor | None = None,
    /,
    *,
    out: Tensor | None = None,
    fixed: bool = False,
) -> Tensor:
    """Reference: see QuantisedLinear. Makes the whole weight anew each time; fixed: and goes row by row."""
    whole = weight.whole(x.dtype).float()
    wide = torch.cat([row @ whole for row in torch.split(x.float(), 1)]) if fixed and len(x) else x.float() @ whole
    if bias is not None:
        wide += bias.float()
    return wide.to(x.dtype) if out is None else out.copy_(wide)


def _fields(words: Tensor, bits: int) -> Tensor:
    """[..., 32 / bits] int32, from 0 on, of int32 words: the lowest bits first."""
    shifts = torch.arange(0, 32, bits, device=words.device, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)


def _packed(codes: Tensor, bits: int, group: int) -> Tensor:
    """codes [K, N] int32 -> [K / block, N, words] int16."""
    K, N = codes.shape
    block, each = min(128, group & -group), 16 // bits
    fields = codes.view(K // block, each, block // each, N)
    words = fields[:, 0] & ((1 << bits) - 1)
    for field in range(1, each):
        words |= (fields[:, field] & ((1 << bits) - 1)) << (bits * field)
    return words.to(torch.int16).permute(0, 2, 1).contiguous()


def _order(g_idx: Tensor, K: int, groups: int) -> Tensor | None:
    """Inputs by their group, None if that is how they stand."""
    in_order = torch.arange(K, device=g_idx.device) // (K // groups)
    if torch.equal(g_idx.long(), in_order):
        return None
    order = torch.argsort(g_idx, stable=True)
    if not torch.equal(g_idx[order].long(), in_order):
        raise ValueError(f"g_idx does not give {K // groups} inputs to each of {groups} groups")
    return order


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
