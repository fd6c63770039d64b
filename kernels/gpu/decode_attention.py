"""Attention of decode rows, split over their keys (Flash-Decoding): see kernels/paged_attention.py.

A row's keys are cut in chunks, each a program, and their states are merged first to last by a second kernel. In the
fast order the device cuts a row into as many chunks as there are programs for, none below CHUNK_AT_LEAST keys; in the
fixed order every chunk is FIXED_CHUNK keys from a multiple of it, in prefill too, and nothing else decides. Where only
the device knows how many rows decode (a graph of a step with prompts), it shares the programs out among those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.architectures import (
    DECODE_ATTENTION,
    EXTRA,
    FIXED_ATTENTION,
    FIXED_MANY_ATTENTION,
    LAUNCH_PROGRAMS,
    MANY_ATTENTION,
    MANY_ROWS,
    Architecture,
    Kind,
    architecture,
)
from kernels.gpu.attend import attend, merge
from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch

CHUNK_AT_LEAST = 128
FIXED_CHUNK = 512
MOST_SPLITS = 32  # in the fast order


@dataclass(frozen=True)
class Workspace:
    """A step's scratch: the states of all chunks of all decode rows, and how rows are split."""

    architecture: Architecture
    deterministic: bool
    rows: int  # most rows that decode
    decodes: Tensor  # [1] int64: how many do; read where `known` is negative
    known: int  # how many do, padding among them, or -1
    splits: int  # most chunks of a row
    programs: int  # for each key head, which rows share; the fixed order cuts every row in `splits`
    states: Tensor  # [places, Hq, 2] fp32: top and total; a row's chunks lie one behind the other
    partials: Tensor  # [places, Hq, D] fp32


def attention_workspace(
    batch: FlatBatch, kv_shape: tuple[int, ...], heads: int, /, *, deterministic: bool, out: Any = None
) -> Workspace:
    """See AttentionWorkspace. Its size follows from the batch's shapes alone, so a graph can hold it.

    Raises ValueError for a head or page size that the kernels don't take.
    """
    _, _, kv_heads, page_size, D = kv_shape
    if D % 16 or D > 256 or page_size % 16 or heads % kv_heads:
        raise ValueError(
            f"the Triton attention takes heads of 16 to 256 elements and pages, both in multiples of 16, and query "
            f"heads in multiples of key heads; got D {D}, page size {page_size}, {heads} query and {kv_heads} key heads"
        )
    device, known = batch.seq_lens.device, batch.num_decode
    longest = batch.page_table.shape[1] * page_size
    kind = architecture(device)
    rows = len(batch.seq_lens) if known is None else known
    programs = triton.cdiv(LAUNCH_PROGRAMS[kind], kv_heads)
    if deterministic:
        splits = triton.cdiv(longest, FIXED_CHUNK)
        places = rows * splits
    else:
        splits = max(1, min(MOST_SPLITS, triton.cdiv(longest, CHUNK_AT_LEAST)))
        if known is not None:
            splits = min(splits, triton.cdiv(programs, max(1, known)))
        places = min(rows * splits, rows + programs)  # n rows of programs / n chunks, rounded up
    if isinstance(out, Workspace) and out.partials.shape == (places, heads, D) and out.deterministic == deterministic:
        states, partials = out.states, out.partials
    else:
        states = torch.empty(places, heads, 2, dtype=torch.float32, device=device)
        partials = torch.empty(places, heads, D, dtype=torch.float32, device=device)
    decodes = batch.query_start if batch.decodes is None else batch.decodes  # some int64 where it is not read
    count = -1 if known is None else known
    return Workspace(kind, deterministic, rows, decodes, count, splits, programs, states, partials)


def decode_attention(
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
    places, heads, D = workspace.partials.shape
    _, _, kv_heads, page_size, _ = kv.shape
    rows, known = workspace.rows, workspace.known
    if not rows:
        return
    _check(q, kv, out, kv_scales)
    few, many = (
        (FIXED_ATTENTION, FIXED_MANY_ATTENTION) if workspace.deterministic else (DECODE_ATTENTION, MANY_ATTENTION)
    )
    table = few if rows < MANY_ROWS else many
    launch = table[workspace.architecture][Kind.of(D, kv.dtype != q.dtype)]
    own = kv_scales if isinstance(kv_scales, Tensor) else None
    k_scale, v_scale = kv_scales if isinstance(kv_scales, tuple) else (1.0, 1.0)
    chunk = FIXED_CHUNK if workspace.deterministic else 0
    group = heads // kv_heads
    common = {"num_warps": launch.warps, "enable_fp_fusion": not workspace.deterministic}
    shared_out = (workspace.decodes, known, workspace.programs, workspace.splits, CHUNK_AT_LEAST)
    _decode[(places, kv_heads)](
        q, kv, own, batch.seq_lens, batch.page_table, workspace.states, workspace.partials, out,
        batch.page_table.stride(0), kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3),
        scale * k_scale, window or 0, soft_cap or 0.0, v_scale, *shared_out,
        HEADS=heads, KV_HEADS=kv_heads, GROUP=group, M=max(launch.block_m, triton.next_power_of_2(group)),
        D=D, D_PAD=triton.next_power_of_2(D), PAGE=page_size, TILE=launch.tile, CHUNK=chunk,
        WINDOW=window is not None, SOFT_CAP=soft_cap is not None, OWN_SCALES=own is not None,
        num_stages=launch.stages, **common, **EXTRA[workspace.architecture],
    )  # fmt: skip
    if workspace.splits > 1:
        _merge_chunks[(rows, heads)](
            batch.seq_lens, workspace.states, workspace.partials, out, window or 0, v_scale, *shared_out,
            HEADS=heads, D=D, D_PAD=triton.next_power_of_2(D), TILE=launch.tile, CHUNK=chunk,
            WINDOW=window is not None, **{**common, "num_warps": 1},
        )  # fmt: skip


def _check(q: Tensor, kv: Tensor, out: Tensor, kv_scales: KvScales | None) -> None:
    """What the kernels assume, alignment too: a view that starts off 16 bytes would be read without pipelining."""
    assert q.is_contiguous()
    assert out.is_contiguous()
    assert kv.stride(4) == 1
    assert not isinstance(kv_scales, Tensor) or kv_scales.is_contiguous()
    for tensor in (q, kv, out):
        assert tensor.data_ptr() % 16 == 0, "attention takes tensors that begin at a multiple of 16 bytes"
    assert all(stride % 16 == 0 for stride in kv.stride()[:4]), f"strides of K/V {kv.stride()} are no multiples of 16"


@triton.jit
def _shares(decodes_ptr, known, programs, most, CHUNK: tl.constexpr):
    """(rows that decode, chunks that each may be cut in)."""
    rows = known
    if known < 0:
        rows = tl.load(decodes_ptr).to(tl.int32)
    if CHUNK > 0:
        splits = most
    else:
        each = tl.maximum(rows, 1)
        splits = tl.minimum((programs + each - 1) // each, most)
    return rows, splits


@triton.jit
def _chunks(seq_len, window, splits, at_least, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """(where a row's first chunk begins, keys a chunk, chunks): the same for both kernels below."""
    first = tl.maximum(seq_len - window, 0) * (window > 0)  # the token's own key counts: seq_len - 1 - (window - 1)
    if CHUNK > 0:
        begin = first // CHUNK * CHUNK
        size = CHUNK + 0 * begin
    else:
        begin = first // TILE * TILE
        even = (seq_len - begin + splits - 1) // splits
        size = tl.maximum((even + TILE - 1) // TILE * TILE, at_least)
    return begin, size, (seq_len - begin + size - 1) // size


@triton.jit(do_not_specialize=["table_stride", "window", "known", "programs", "most", "at_least"])
def _decode(
    q_ptr,  # [T, HEADS, D]
    kv_ptr,  # [pages, 2, KV_HEADS, PAGE, D], strides below
    scales_ptr,  # [pages, 2, KV_HEADS, PAGE] fp32 or None
    seq_lens_ptr,  # [R] int64
    table_ptr,  # [R, P] int32
    states_ptr,  # [places, HEADS, 2] fp32
    partials_ptr,  # [places, HEADS, D] fp32
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
    decodes_ptr,  # [1] int64
    known,  # rows that decode; negative: decodes
    programs,  # of a key head
    most,  # chunks of a row
    at_least,  # keys of a chunk in the fast order
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of a key head, which share each tile of keys
    M: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,  # keys of every chunk in the fixed order, 0 in the fast one
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    OWN_SCALES: tl.constexpr,
):
    """Grid (places, KV_HEADS). Writes a chunk's state, or the row's result where one chunk is all there is."""
    rows, splits = _shares(decodes_ptr, known, programs, most, CHUNK)
    row = (tl.program_id(0) // splits).to(tl.int64)
    split = tl.program_id(0) % splits
    kv_head = tl.program_id(1).to(tl.int64)
    if row >= rows:
        return
    seq_len = tl.load(seq_lens_ptr + row).to(tl.int32)
    begin, size, count = _chunks(seq_len, window, splits, at_least, TILE, CHUNK)
    if split >= count:
        return
    first = begin + split * size
    end = tl.minimum(first + size, seq_len)
    query = tl.arange(0, M)
    place = tl.arange(0, D_PAD)
    real = (query < GROUP)[:, None] & (place < D)[None, :]  # [M, D_PAD]
    heads = kv_head * GROUP + query  # [M]
    at = (row * HEADS + heads)[:, None] * D + place[None, :]
    q = tl.load(q_ptr + at, mask=real, other=0.0)
    if OWN_SCALES:
        beside = scales_ptr + kv_head * PAGE
    else:
        beside = scales_ptr
    top, total, acc = attend(
        q, tl.full([M], 0, tl.int32) + (seq_len - 1), kv_ptr + kv_head * head_stride, beside,
        table_ptr + row * table_stride, first, end, page_stride, side_stride, slot_stride, KV_HEADS, scale, window,
        soft_cap, D, D_PAD, PAGE, TILE, M, WINDOW, SOFT_CAP, OWN_SCALES,
    )  # fmt: skip
    if count == 1:
        total = tl.where(total > 0, total, 1.0)  # rows of the tile beyond the group saw nothing
        tl.store(out_ptr + at, (acc / total[:, None] * v_scale).to(out_ptr.dtype.element_ty), mask=real)
    else:
        chunk = tl.program_id(0).to(tl.int64) * HEADS + heads  # [M]
        tl.store(states_ptr + chunk * 2, top, mask=query < GROUP)
        tl.store(states_ptr + chunk * 2 + 1, total, mask=query < GROUP)
        tl.store(partials_ptr + chunk[:, None] * D + place[None, :], acc, mask=real)


@triton.jit(do_not_specialize=["window", "known", "programs", "most", "at_least"])
def _merge_chunks(
    seq_lens_ptr,  # [R] int64
    states_ptr,  # [places, HEADS, 2] fp32
    partials_ptr,  # [places, HEADS, D] fp32
    out_ptr,  # [T, HEADS, D]
    window,
    v_scale,
    decodes_ptr,  # [1] int64
    known,
    programs,
    most,
    at_least,  # keys of a chunk in the fast order
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Grid (rows, HEADS): the states of a row's chunks, merged first to last, in fp32."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    rows, splits = _shares(decodes_ptr, known, programs, most, CHUNK)
    if row >= rows:
        return
    seq_len = tl.load(seq_lens_ptr + row).to(tl.int32)
    _, _, count = _chunks(seq_len, window, splits, at_least, TILE, CHUNK)
    if count <= 1:
        return
    base = row * splits * HEADS + head
    place = tl.arange(0, D_PAD)
    inside = place < D
    top = tl.load(states_ptr + base * 2)
    total = tl.load(states_ptr + base * 2 + 1)
    acc = tl.load(partials_ptr + base * D + place, mask=inside, other=0.0)  # [D_PAD]
    for split in tl.range(1, count):
        chunk = base + split * HEADS
        more = tl.load(partials_ptr + chunk * D + place, mask=inside, other=0.0)
        top, total, acc = merge(
            top, total, acc, tl.load(states_ptr + chunk * 2), tl.load(states_ptr + chunk * 2 + 1), more
        )
    out = (acc / total * v_scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (row * HEADS + head) * D + place, out, mask=inside)
