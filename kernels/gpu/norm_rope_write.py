"""q/k norm, rotary embedding and the write of K and V: see kernels/norm_rope_write.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.kv_scales import LARGEST, KvScales

HEADS = 8
"""Heads of one token that a program takes."""


def norm_rope_write(
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
    """See NormRopeWrite."""
    _, _, kv_heads, page_size, D = kv.shape
    T, all_heads = qkv.shape[0], qkv.shape[1] // D
    q_heads = all_heads - 2 * kv_heads
    if out is None:
        out = torch.empty(T, q_heads, D, dtype=qkv.dtype, device=qkv.device)
    assert qkv.is_contiguous()
    assert out.is_contiguous()
    assert kv.stride(4) == 1
    own = isinstance(kv_scales, Tensor)
    k_scale, v_scale = kv_scales if isinstance(kv_scales, tuple) else (1.0, 1.0)
    assert not isinstance(kv_scales, Tensor) or kv_scales.is_contiguous()
    if T:
        _norm_rope_write[(T, triton.cdiv(all_heads, HEADS))](
            qkv, kv, positions, slot_mapping, cos_sin, q_norm, k_norm, kv_scales if own else None, out,
            kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3), eps, k_scale, v_scale,
            q_heads=q_heads, kv_heads=kv_heads, PAGE=page_size, D=D, HALF=triton.next_power_of_2(D // 2), HEADS=HEADS,
            NORM=q_norm is not None and k_norm is not None, OWN_SCALES=own, LARGEST=LARGEST.get(kv.dtype, 0.0),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


@triton.jit
def _norm_rope_write(
    qkv_ptr,  # [T, (Hq + 2*Hkv) * D]
    kv_ptr,  # [pages, 2, Hkv, PAGE, D], strides below
    positions_ptr,  # [T] int64
    slots_ptr,  # [T] int64
    cos_sin_ptr,  # [max_len, D] fp32
    q_norm_ptr,  # [D] or None
    k_norm_ptr,  # [D] or None
    scales_ptr,  # [pages, 2, Hkv, PAGE] fp32 or None
    out_ptr,  # [T, Hq, D]
    page_stride,
    side_stride,
    head_stride,
    slot_stride,
    eps,
    k_scale,  # K is divided by it before it is stored
    v_scale,
    q_heads: tl.constexpr,
    kv_heads: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,  # the power of 2 from D / 2 up
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    OWN_SCALES: tl.constexpr,
    LARGEST: tl.constexpr,  # of the stored dtype; 0 where it is the model's
):
    """Grid (T, heads / HEADS). All in fp32; the norm is rounded where the reference rounds it."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)  # [HEADS], q heads, then k, then v
    place = tl.arange(0, HALF)  # in either half of a head
    is_q = head < q_heads
    is_v = head >= q_heads + kv_heads
    inside = (head < q_heads + 2 * kv_heads)[:, None] & (place < D // 2)[None, :]  # [HEADS, HALF]
    source = qkv_ptr + (token * (q_heads + 2 * kv_heads) + head)[:, None] * D + place[None, :]
    dtype = qkv_ptr.dtype.element_ty
    x1 = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(source + D // 2, mask=inside, other=0.0).to(tl.float32)
    half = place < D // 2
    if NORM:
        scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / D + eps)[:, None]  # [HEADS, 1]
        q1 = tl.load(q_norm_ptr + place, mask=half, other=0.0).to(tl.float32)[None, :]
        q2 = tl.load(q_norm_ptr + D // 2 + place, mask=half, other=0.0).to(tl.float32)[None, :]
        k1 = tl.load(k_norm_ptr + place, mask=half, other=0.0).to(tl.float32)[None, :]
        k2 = tl.load(k_norm_ptr + D // 2 + place, mask=half, other=0.0).to(tl.float32)[None, :]
        normed1 = (x1 * scale).to(dtype).to(tl.float32) * tl.where(is_q[:, None], q1, k1)
        normed2 = (x2 * scale).to(dtype).to(tl.float32) * tl.where(is_q[:, None], q2, k2)
        x1 = tl.where(is_v[:, None], x1, normed1.to(dtype).to(tl.float32))
        x2 = tl.where(is_v[:, None], x2, normed2.to(dtype).to(tl.float32))
    angles = cos_sin_ptr + tl.load(positions_ptr + token) * D + place
    cos = tl.load(angles, mask=half, other=0.0)[None, :]
    sin = tl.load(angles + D // 2, mask=half, other=0.0)[None, :]
    y1 = tl.where(is_v[:, None], x1, x1 * cos - x2 * sin).to(dtype)
    y2 = tl.where(is_v[:, None], x2, x2 * cos + x1 * sin).to(dtype)
    target = out_ptr + (token * q_heads + head)[:, None] * D + place[None, :]
    tl.store(target, y1, mask=inside & is_q[:, None])
    tl.store(target + D // 2, y2, mask=inside & is_q[:, None])

    slot = tl.load(slots_ptr + token)
    stores = (head >= q_heads) & (head < q_heads + 2 * kv_heads) & (tl.zeros([HEADS], tl.int64) + slot >= 0)
    writes = inside & stores[:, None]
    side = is_v.to(tl.int64)  # [HEADS]
    kv_head = tl.where(is_v, head - q_heads - kv_heads, head - q_heads).to(tl.int64)
    page, row = slot // PAGE, slot % PAGE
    target = kv_ptr + page * page_stride + row * slot_stride
    target = target + (side * side_stride + kv_head * head_stride)[:, None] + place[None, :]
    if LARGEST > 0:
        if OWN_SCALES:
            greatest = tl.maximum(
                tl.max(tl.abs(y1.to(tl.float32)), 1), tl.max(tl.abs(y2.to(tl.float32)), 1)
            ) / LARGEST  # [HEADS]  # fmt: skip
            greatest = tl.where(greatest > 0, greatest, 1.0)
            beside = scales_ptr + ((page * 2 + side) * kv_heads + kv_head) * PAGE + row
            tl.store(beside, greatest, mask=stores)
            scale = greatest[:, None]
        else:
            scale = tl.where(is_v, v_scale, k_scale)[:, None]
        narrow: tl.constexpr = kv_ptr.dtype.element_ty
        tl.store(target, _stored(y1, scale, narrow, LARGEST), mask=writes)
        tl.store(target + D // 2, _stored(y2, scale, narrow, LARGEST), mask=writes)
    else:
        tl.store(target, y1, mask=writes)
        tl.store(target + D // 2, y2, mask=writes)


@triton.jit
def _stored(x, scale, dtype: tl.constexpr, LARGEST: tl.constexpr):
    """x / scale as dtype: clamped, and to the nearest (int8 by adding and taking 1.5 * 2^23, half to even)."""
    wide = tl.clamp(x.to(tl.float32) / scale, -LARGEST, LARGEST)
    if dtype == tl.int8:
        wide = (wide + 12582912.0) - 12582912.0
    return wide.to(dtype)
