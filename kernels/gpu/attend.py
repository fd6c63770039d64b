"""A walk over some of a row's keys with an online softmax (Milakov and Gimelshein, arXiv 1805.02867): what decode and
prefill share, so that in the fixed order both give a token the same bits.

A state is (top, total, acc): the greatest score so far in powers of 2, the sum of 2^(score - top), and the sum of
2^(score - top) * V, all fp32. A tile of keys that a query doesn't see leaves its state as it was, to the bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    q,  # [M, D_PAD] model dtype
    position,  # [M] of each query token; -1 sees nothing
    kv_ptr,  # this layer's pages at its key/value head, strides below
    scales_ptr,  # [pages, 2, Hkv, PAGE] fp32 at that head, or None
    table_ptr,  # the row's page numbers, int32
    first,  # of the keys: a multiple of TILE
    end,  # one past the last; keys from there on are not read, as they may be NaN
    page_stride,
    side_stride,
    slot_stride,
    kv_heads,
    scale,  # on the scores
    window,  # keys seen counting the token itself; 0: all
    soft_cap,  # 0: none
    D: tl.constexpr,
    D_PAD: tl.constexpr,  # the power of 2 from D up
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    M: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    OWN_SCALES: tl.constexpr,
):
    """The state of queries q after keys [first, end). Scores in fp32; weights in the model's dtype for the product."""
    place = tl.arange(0, D_PAD)
    inside = place < D
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D_PAD], tl.float32)
    for start in tl.range(first, end, TILE):
        key = start + tl.arange(0, TILE)  # [TILE]
        real = key < end
        page = tl.load(table_ptr + key // PAGE, mask=real, other=0).to(tl.int64)
        place_of_key = page * page_stride + (key % PAGE) * slot_stride
        k = tl.load(kv_ptr + place_of_key[None, :] + place[:, None], mask=real[None, :] & inside[:, None], other=0.0)
        v = tl.load(
            kv_ptr + side_stride + place_of_key[:, None] + place[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale  # [M, TILE]
        if OWN_SCALES:
            beside = scales_ptr + page * (2 * kv_heads * PAGE) + key % PAGE
            scores = scores * tl.load(beside, mask=real, other=0.0)[None, :]
            v_scale = tl.load(beside + kv_heads * PAGE, mask=real, other=0.0)
        if SOFT_CAP:  # cap * tanh(x / cap), tanh(y) = 1 - 2 / (e^2y + 1)
            scores = soft_cap * (1.0 - 2.0 / (tl.exp2(scores * (2.8853900817779268 / soft_cap)) + 1.0))
        seen = real[None, :] & (key[None, :] <= position[:, None])
        if WINDOW:
            seen = seen & (key[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        steady = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: 2^(-inf - 0) is 0, not NaN
        weights = tl.exp2(scores - steady[:, None])
        fade = tl.exp2(top - steady)
        total = total * fade + tl.sum(weights, 1)
        if OWN_SCALES:
            weights = weights * v_scale[None, :]
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * fade[:, None], input_precision="ieee")
        top = higher
    return top, total, acc


@triton.jit
def merge(top, total, acc, more_top, more_total, more_acc):
    """The state of both: of an earlier chunk of keys and a later one. Any shape [...], acc [..., D]."""
    higher = tl.maximum(top, more_top)
    steady = tl.where(higher == float("-inf"), 0.0, higher)
    fade, more_fade = tl.exp2(top - steady), tl.exp2(more_top - steady)
    total = total * fade + more_total * more_fade
    return higher, total, acc * tl.expand_dims(fade, -1) + more_acc * tl.expand_dims(more_fade, -1)
