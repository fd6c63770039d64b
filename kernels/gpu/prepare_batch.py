"""From rows to the flat batch, on the device: see kernels/prepare_batch.py."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.prepare_batch import FlatBatch

BLOCK = 256
LOGITS = 16  # of a program


def prepare_batch(
    tokens: Tensor,
    computed: Tensor,
    page_table: Tensor,
    rows: Tensor,
    query_lens: Tensor,
    logits_rows: Tensor,
    /,
    *,
    page_size: int,
    num_decode: int | None,
    pad_tokens: int = 0,
    pad_logits: int = 0,
    num_pages: int | None = None,
    out: FlatBatch | None = None,
) -> FlatBatch:
    """See PrepareBatch. Of the page table only a row's own pages are written."""
    R, device = rows.shape[0], rows.device
    T = pad_tokens or int(query_lens.sum())
    if out is None:
        if num_pages is None:
            longest = (computed[rows].where(rows >= 0, 0) + query_lens).max()
            num_pages = triton.cdiv(int(longest), page_size)
        out = _empty(R, T, max(pad_logits, logits_rows.shape[0]), num_pages, device)
    L = out.logits_index.shape[0]
    _prepare_batch[(R + 1 + triton.cdiv(L, LOGITS),)](
        tokens, computed, page_table, rows, query_lens, logits_rows,
        out.input_ids, out.positions, out.slot_mapping, out.query_start, out.seq_lens, out.page_table, out.logits_index,
        out.decodes,
        tokens.stride(0), page_table.stride(0), out.page_table.stride(0), R, out.input_ids.shape[0],
        logits_rows.shape[0], L,
        PAGE=page_size, ROWS=triton.next_power_of_2(R), BLOCK=BLOCK, LOGITS=LOGITS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return replace(out, num_decode=num_decode)


def _empty(R: int, T: int, L: int, P: int, device: torch.device) -> FlatBatch:
    def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return FlatBatch(
        input_ids=numbers(T),
        positions=numbers(T),
        slot_mapping=numbers(T),
        query_start=numbers(R + 1),
        seq_lens=numbers(R),
        page_table=numbers(R, P, dtype=torch.int32),
        logits_index=numbers(L),
        num_decode=0,
        decodes=numbers(1),
    )


@triton.jit(do_not_specialize=["tokens_stride", "table_stride", "pages_stride", "R", "T", "wanted", "L"])
def _prepare_batch(
    tokens_ptr,  # [max_rows, max_len] int32
    computed_ptr,  # [max_rows] int64
    table_ptr,  # [max_rows, max_pages] int32
    rows_ptr,  # [R] int64, negative: padding
    lens_ptr,  # [R] int64
    logits_rows_ptr,  # [wanted] int64
    ids_ptr,  # [T] int64
    positions_ptr,  # [T] int64
    slots_ptr,  # [T] int64
    query_start_ptr,  # [R + 1] int64
    seq_lens_ptr,  # [R] int64
    pages_ptr,  # [R, P] int32
    logits_index_ptr,  # [L] int64
    decodes_ptr,  # [1] int64: how many rows add one token
    tokens_stride,
    table_stride,
    pages_stride,
    R,
    T,
    wanted,
    L,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,  # the power of 2 from R up
    BLOCK: tl.constexpr,
    LOGITS: tl.constexpr,
):
    """Grid (R + 1 + L / LOGITS): a row each, then the padding of tokens, then the wanted positions."""
    program = tl.program_id(0)
    each = tl.arange(0, ROWS)
    lens = tl.load(lens_ptr + each, mask=each < R, other=0)  # [ROWS]
    if program < R:
        row = tl.load(rows_ptr + program)
        begin = tl.sum(tl.where(each < program, lens, 0), 0)
        count = tl.load(lens_ptr + program)
        done = tl.load(computed_ptr + tl.maximum(row, 0))
        done = tl.where(row < 0, 0, done)
        tl.store(query_start_ptr + program + 1, begin + count)
        tl.store(seq_lens_ptr + program, done + count)
        if program == 0:
            tl.store(query_start_ptr, count * 0)
            tl.store(decodes_ptr, tl.sum((lens == 1).to(tl.int64), 0))
        for start in tl.range(0, count.to(tl.int32), BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < count
            position = done + at
            token = tl.load(tokens_ptr + row * tokens_stride + position, mask=inside, other=0)
            page = tl.load(table_ptr + row * table_stride + position // PAGE, mask=inside, other=0).to(tl.int64)
            tl.store(ids_ptr + begin + at, token.to(tl.int64), mask=inside)
            tl.store(positions_ptr + begin + at, position, mask=inside)
            tl.store(slots_ptr + begin + at, page * PAGE + position % PAGE, mask=inside)
        pages = ((done + count + PAGE - 1) // PAGE).to(tl.int32)
        for start in tl.range(0, pages, BLOCK):
            at = start + tl.arange(0, BLOCK)
            page = tl.load(table_ptr + row * table_stride + at, mask=at < pages, other=0)
            tl.store(pages_ptr + program.to(tl.int64) * pages_stride + at, page, mask=at < pages)
    elif program == R:
        for start in tl.range(tl.sum(lens, 0).to(tl.int32), T, BLOCK):
            at = start + tl.arange(0, BLOCK)
            nothing = tl.zeros([BLOCK], tl.int64)
            tl.store(ids_ptr + at, nothing, mask=at < T)
            tl.store(positions_ptr + at, nothing, mask=at < T)
            tl.store(slots_ptr + at, nothing - 1, mask=at < T)
    else:
        at = (program - R - 1) * LOGITS + tl.arange(0, LOGITS)
        last = tl.load(logits_rows_ptr + at, mask=at < wanted, other=0)
        ends = tl.sum(tl.where(each[None, :] <= last[:, None], lens[None, :], 0), 1)  # [LOGITS]
        tl.store(logits_index_ptr + at, tl.where(at < wanted, tl.maximum(ends - 1, 0), 0), mask=at < L)
