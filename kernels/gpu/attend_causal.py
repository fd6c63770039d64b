"""A walk over the keys of a block of prefill's queries, for the fast order alone: attend.py's online softmax, arranged
for matrix instructions of many rows.

Most tiles of a long text are seen whole by every query of the block: those are walked without any mask. Where the
block's own tokens begin, and where a window ends, other loops mask. Past the last key the last one is read again, so
that loads need no mask; its weight is 0. Page numbers are read once a page and a tile before they are needed, as
scalars: Triton would pipeline a tensor of them as one more tile, with waits of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_causal(
    q,  # [M, D_PAD] model dtype
    position,  # [M] of each query token: first or after, before end
    kv_ptr,  # this layer's pages at its key/value head, strides below
    scales_ptr,  # [pages, 2, Hkv, PAGE] fp32 at that head, or None
    table_ptr,  # the row's page numbers, int32
    first,  # position of the block's first query
    end,  # one past the last
    page_stride,
    side_stride,
    slot_stride,
    kv_heads,
    scale,  # on the scores, above 0
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
    """The state (top, total, acc) of queries q after all keys they see: each sees one at least."""
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D_PAD], tl.float32)
    begin = 0
    whole = (first + 1) // TILE * TILE  # tiles before it end before every query
    if WINDOW:
        begin = tl.maximum(first + 1 - window, 0) // TILE * TILE
        inside = tl.maximum(end - window + TILE - 1, 0) // TILE * TILE  # from there on all tiles are in every window
        inside = tl.minimum(inside, whole)
        top, total, acc = _walk(
            q, position, kv_ptr, scales_ptr, table_ptr, top, total, acc, begin, inside, end, page_stride, side_stride,
            slot_stride, kv_heads, scale, window, soft_cap, D, D_PAD, PAGE, TILE, True, WINDOW, SOFT_CAP, OWN_SCALES,
        )  # fmt: skip
        begin = inside
    top, total, acc = _walk(
        q, position, kv_ptr, scales_ptr, table_ptr, top, total, acc, begin, whole, end, page_stride, side_stride,
        slot_stride, kv_heads, scale, window, soft_cap, D, D_PAD, PAGE, TILE, False, WINDOW, SOFT_CAP, OWN_SCALES,
    )  # fmt: skip
    return _walk(
        q, position, kv_ptr, scales_ptr, table_ptr, top, total, acc, whole, end, end, page_stride, side_stride,
        slot_stride, kv_heads, scale, window, soft_cap, D, D_PAD, PAGE, TILE, True, WINDOW, SOFT_CAP, OWN_SCALES,
    )  # fmt: skip


@triton.jit
def _walk(
    q,
    position,
    kv_ptr,
    scales_ptr,
    table_ptr,
    top,
    total,
    acc,
    first,  # of the keys: a multiple of TILE
    stop,
    end,
    page_stride,
    side_stride,
    slot_stride,
    kv_heads,
    scale,
    window,
    soft_cap,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    OWN_SCALES: tl.constexpr,
):
    """The state after tiles [first, stop) too. MASKED: where a query may not see some key, or keys end."""
    place = tl.arange(0, D_PAD)
    step = tl.arange(0, TILE)
    last = end - 1
    pages = _pages(table_ptr, first, last, PAGE, TILE)
    for start in tl.range(first, stop, TILE):
        key = start + step  # [TILE]
        slot = (tl.minimum(key, last) if MASKED else step if TILE % PAGE == 0 else key) % PAGE
        page = _page_of_each(pages, PAGE, TILE)
        pages = _pages(table_ptr, start + TILE, last, PAGE, TILE)
        k_ptr = kv_ptr + (page * page_stride + slot * slot_stride)[:, None] + place[None, :]
        if D == D_PAD:
            k, v = tl.load(k_ptr), tl.load(k_ptr + side_stride)
        else:
            k = tl.load(k_ptr, mask=place[None, :] < D, other=0.0)
            v = tl.load(k_ptr + side_stride, mask=place[None, :] < D, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")  # [M, TILE]
        factor = scale * 1.4426950408889634  # of powers of 2
        if OWN_SCALES:
            beside = scales_ptr + page * (2 * kv_heads * PAGE) + slot
            scores = scores * tl.load(beside)[None, :]
            v_scale = tl.load(beside + kv_heads * PAGE)
        if SOFT_CAP:  # cap * tanh(x / cap), tanh(y) = 1 - 2 / (e^2y + 1)
            scores = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * factor / soft_cap)) + 1.0)
            factor = soft_cap * 1.4426950408889634
        if MASKED:
            seen = key[None, :] <= position[:, None]
            if WINDOW:
                seen = seen & (key[None, :] > position[:, None] - window)
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * factor)
        steady = higher
        if MASKED and WINDOW:
            steady = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: 2^(-inf - 0) is 0, not NaN
        weights = tl.exp2(scores * factor - steady[:, None])
        fade = tl.exp2(top - steady)
        total = total * fade + tl.sum(weights, 1)
        if OWN_SCALES:
            weights = weights * v_scale[None, :]
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc * fade[:, None], input_precision="ieee")
        top = higher
    return top, total, acc


@triton.jit
def _pages(table_ptr, start, last, PAGE: tl.constexpr, TILE: tl.constexpr):
    """The page numbers of keys [start, start + TILE), none past `last`: a scalar a page, or one a key where pages cut
    across tiles."""
    if TILE % PAGE == 0 or PAGE % TILE == 0:
        pages = (tl.load(table_ptr + tl.minimum(start, last) // PAGE),)
        for n in tl.static_range(1, TILE // PAGE):
            more = tl.load(table_ptr + tl.minimum(start + n * PAGE, last) // PAGE)
            # Triton compiles no (*pages, more); mypy takes the tuple for one of one element for good
            pages = pages + (more,)  # type: ignore[assignment]  # noqa: RUF005
    else:
        pages = (tl.load(table_ptr + tl.minimum(start + tl.arange(0, TILE), last) // PAGE),)
    return pages


@triton.jit
def _page_of_each(pages, PAGE: tl.constexpr, TILE: tl.constexpr):
    """Of each key of a tile, int64."""
    step = tl.arange(0, TILE)
    page = pages[0]
    for n in tl.static_range(1, len(pages)):
        page = tl.where(step < n * PAGE, page, pages[n])
    return page.to(tl.int64)
