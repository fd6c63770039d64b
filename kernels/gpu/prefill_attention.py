"""Attention of prefill chunks, ragged, with what is cached before them: see kernels/paged_attention.py.

A program takes a block of a row's query tokens with all query heads of a key head. Which row a block belongs to is
found on the device, so the grid follows from shapes alone. The fast order walks keys in loops of its own
(attend_causal.py). In the fixed order a block is a tile of the decode kernel's size, walks the same chunks of keys with
the same products, and merges them as that one's second kernel does.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.architectures import EXTRA, FIXED_ATTENTION, PREFILL_ATTENTION, Kind
from kernels.gpu.attend import attend, merge
from kernels.gpu.attend_causal import attend_causal
from kernels.gpu.decode_attention import FIXED_CHUNK, Workspace, _check
from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch


def prefill_attention(
    q: Tensor,
    kv: Tensor,
    batch: FlatBatch,
    workspace: Workspace,
    out: Tensor,
    /,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: KvScales | None = None,
) -> None:
    """See Attention."""
    T, heads, D = q.shape
    _, _, kv_heads, page_size, _ = kv.shape
    rows, known = batch.seq_lens.shape[0], workspace.known
    if rows <= known:
        return
    _check(q, kv, out, kv_scales)
    assert scale > 0, "the greatest score is taken before scores are scaled"
    table = FIXED_ATTENTION if workspace.deterministic else PREFILL_ATTENTION
    launch = table[workspace.architecture][Kind.of(D, kv.dtype != q.dtype)]
    own = kv_scales if isinstance(kv_scales, Tensor) else None
    k_scale, v_scale = kv_scales if isinstance(kv_scales, tuple) else (1.0, 1.0)
    group = heads // kv_heads
    M = max(launch.block_m, triton.next_power_of_2(group))
    tokens = M // group  # of a block
    decode = max(0, known)
    blocks = (T - decode) // tokens + rows - decode  # one more a row than whole blocks at most
    _prefill[(blocks, kv_heads)](
        q, kv, own, workspace.decodes, batch.query_start, batch.seq_lens, batch.page_table, out,
        batch.page_table.stride(0), kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3),
        scale * k_scale, window or 0, soft_cap or 0.0, v_scale, known, rows,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=group, TOKENS=tokens, M=M, D=D, D_PAD=triton.next_power_of_2(D),
        PAGE=page_size, TILE=launch.tile, CHUNK=FIXED_CHUNK if workspace.deterministic else 0,
        WINDOW=window is not None, SOFT_CAP=soft_cap is not None, OWN_SCALES=own is not None,
        num_warps=launch.warps, num_stages=launch.stages, enable_fp_fusion=not workspace.deterministic,
        **EXTRA[workspace.architecture],
    )  # fmt: skip


@triton.jit(do_not_specialize=["table_stride", "window", "known", "rows"])
def _prefill(
    q_ptr,  # [T, HEADS, D]
    kv_ptr,  # [pages, 2, KV_HEADS, PAGE, D], strides below
    scales_ptr,  # [pages, 2, KV_HEADS, PAGE] fp32 or None
    decodes_ptr,  # [1] int64
    query_start_ptr,  # [R + 1] int64
    seq_lens_ptr,  # [R] int64
    table_ptr,  # [R, P] int32
    out_ptr,  # [T, HEADS, D]
    table_stride,
    page_stride,
    side_stride,
    head_stride,
    slot_stride,
    scale,
    window,
    soft_cap,
    v_scale,
    known,  # rows that decode; negative: decodes
    rows,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,  # query tokens of a block
    M: tl.constexpr,  # query rows of a block: TOKENS * GROUP and what the tile's power of 2 adds
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,  # keys of a chunk in the fixed order, 0 in the fast one
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    OWN_SCALES: tl.constexpr,
):
    """Grid (blocks, KV_HEADS). Row r's blocks begin at (query_start[r] - query_start[first]) // TOKENS + r - first."""
    program = tl.program_id(0) + tl.program_id(1) * tl.num_programs(0)
    block = tl.num_programs(0) - 1 - program // KV_HEADS  # a row's last blocks see most keys: they begin first
    kv_head = (program % KV_HEADS).to(tl.int64)
    decode_rows = known
    if known < 0:
        decode_rows = tl.load(decodes_ptr).to(tl.int32)
        if decode_rows >= rows:
            return
    base = tl.load(query_start_ptr + decode_rows)
    low, high = decode_rows, rows - 1  # the last row whose blocks begin at `block` or before
    while low < high:
        middle = (low + high + 1) // 2
        begins = (tl.load(query_start_ptr + middle) - base) // TOKENS + middle - decode_rows
        low = tl.where(begins <= block, middle, low)
        high = tl.where(begins <= block, high, middle - 1)
    row = low.to(tl.int64)
    start = tl.load(query_start_ptr + row)
    count = (tl.load(query_start_ptr + row + 1) - start).to(tl.int32)
    token = (block - ((start - base) // TOKENS + row - decode_rows)).to(tl.int32) * TOKENS
    if token >= count:
        return
    seq_len = tl.load(seq_lens_ptr + row).to(tl.int32)
    m = tl.arange(0, M)
    place = tl.arange(0, D_PAD)
    own = token + m // GROUP  # [M], the query token in its row
    real = (m < TOKENS * GROUP) & (own < count)
    position = tl.where(real, seq_len - count + own, -1)
    at = ((start + own) * HEADS + kv_head * GROUP + m % GROUP)[:, None] * D + place[None, :]
    inside = real[:, None] & (place < D)[None, :]
    q = tl.load(q_ptr + at, mask=inside, other=0.0)  # [M, D_PAD]
    first = seq_len - count + token  # the block's first position
    end = tl.minimum(first + TOKENS, seq_len)
    keys = kv_ptr + kv_head * head_stride
    table = table_ptr + row * table_stride
    if OWN_SCALES:
        beside = scales_ptr + kv_head * PAGE
    else:
        beside = scales_ptr
    if CHUNK > 0:
        begin = tl.maximum(first + 1 - window, 0) * (window > 0) // CHUNK * CHUNK  # of the first key it sees
        top, total, acc = attend(
            q, position, keys, beside, table, begin, tl.minimum(begin + CHUNK, end), page_stride, side_stride,
            slot_stride, KV_HEADS, scale, window, soft_cap, D, D_PAD, PAGE, TILE, M, WINDOW, SOFT_CAP, OWN_SCALES,
        )  # fmt: skip
        for chunk in tl.range(begin + CHUNK, end, CHUNK):
            more_top, more_total, more_acc = attend(
                q, position, keys, beside, table, chunk, tl.minimum(chunk + CHUNK, end), page_stride, side_stride,
                slot_stride, KV_HEADS, scale, window, soft_cap, D, D_PAD, PAGE, TILE, M, WINDOW, SOFT_CAP, OWN_SCALES,
            )  # fmt: skip
            top, total, acc = merge(top, total, acc, more_top, more_total, more_acc)
    else:
        top, total, acc = attend_causal(
            q, tl.minimum(seq_len - count + own, end - 1), keys, beside, table, first, end, page_stride, side_stride,
            slot_stride, KV_HEADS, scale, window, soft_cap, D, D_PAD, PAGE, TILE, M, WINDOW, SOFT_CAP, OWN_SCALES,
        )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)  # rows of the tile that are no query saw nothing
    out = (acc / total[:, None] * v_scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, out, mask=inside)
