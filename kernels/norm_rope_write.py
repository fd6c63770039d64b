"""q/k norm (optional), rotary embedding (RoFormer, arXiv 2104.09864) and the write of K and V into their pages."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernels.kv_scales import KvScales, stored, token_scales
from kernels.rms_norm import rms_norm_torch


class NormRopeWrite(Protocol):
    """norm_rope_write(qkv, kv, positions, slot_mapping, cos_sin, ..., out=None) -> q.

    qkv           [T, (Hq + 2*Hkv) * D] model dtype: query, key, value heads side by side
    kv            [pages, 2, Hkv, page_size, D] KV dtype: this layer's pages, K at 0 and V at 1; written in place
    positions     [T] int64
    slot_mapping  [T] int64: page * page_size + place in it; a negative slot is padding and is not written
    cos_sin       [max_len, D] fp32: cos in the first half of the last axis, sin in the second
    q_norm, k_norm [D] model dtype or None: RMSNorm weights over each head, applied before the rotation
    kv_scales     see kernels/kv_scales.py: K and V are divided by them before they are stored; a tensor of them is
                  written in the same slots
    returns q     [T, Hq, D] model dtype, rotated; in `out` if that is given

    Halves are rotated (not interleaved pairs): out = (x1*cos - x2*sin, x2*cos + x1*sin), in fp32, rounded once.
    """

    def __call__(
        self,
        qkv: Tensor,
        kv: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        cos_sin: Tensor,
        /,
        *,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        kv_scales: KvScales | None = None,
        out: Tensor | None = None,
    ) -> Tensor: ...


def norm_rope_write_torch(
    qkv: Tensor,
    kv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    /,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    kv_scales: KvScales | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Reference: see NormRopeWrite."""
    _, _, kv_heads, page_size, D = kv.shape
    heads = qkv.view(qkv.shape[0], -1, D)  # [T, Hq + 2*Hkv, D]
    q_heads = heads.shape[1] - 2 * kv_heads
    turned, value = heads[:, : q_heads + kv_heads], heads[:, q_heads + kv_heads :]
    if q_norm is not None and k_norm is not None:
        q = rms_norm_torch(turned[:, :q_heads], q_norm, eps)
        k = rms_norm_torch(turned[:, q_heads:], k_norm, eps)
        turned = torch.cat([q, k], dim=1)
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D/2] each
    x1, x2 = turned.float().chunk(2, dim=-1)
    wide = torch.empty(turned.shape, dtype=torch.float32, device=qkv.device)
    wide1, wide2 = wide.chunk(2, dim=-1)
    torch.mul(x1, cos, out=wide1).addcmul_(x2, sin, value=-1.0)
    torch.mul(x2, cos, out=wide2).addcmul_(x1, sin)
    rotated = wide.to(qkv.dtype)
    entries = torch.stack([rotated[:, q_heads:], value], dim=1)  # [T, 2, Hkv, D]
    if bool((slot_mapping < 0).any()):
        real = slot_mapping >= 0
        entries, slot_mapping = entries[real], slot_mapping[real]
    page = torch.div(slot_mapping, page_size, rounding_mode="floor")
    where = (page, slot_mapping - page * page_size)
    if kv_scales is not None:
        entries = _scaled(entries, kv.dtype, where, kv_scales)
    kv.permute(0, 3, 1, 2, 4).index_put_(where, entries.to(kv.dtype))
    return rotated[:, :q_heads] if out is None else out.copy_(rotated[:, :q_heads])


def _scaled(entries: Tensor, dtype: torch.dtype, where: tuple[Tensor, Tensor], kv_scales: KvScales) -> Tensor:
    """Entries [T, 2, Hkv, D] over their scales, as dtype; scales of their own are written at (page, place)."""
    if isinstance(kv_scales, Tensor):
        scales = token_scales(entries, dtype)  # [T, 2, Hkv]
        kv_scales.permute(0, 3, 1, 2).index_put_(where, scales)
        return stored(entries.float() / scales.unsqueeze(-1), dtype)
    return stored(entries.float() / torch.tensor(kv_scales, device=entries.device).view(1, 2, 1, 1), dtype)
