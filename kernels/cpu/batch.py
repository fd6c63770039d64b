"""The flat batch in C (batch.c): the same numbers as the reference's, in one call."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import torch
from torch import Tensor

from kernels.cpu.library import load
from kernels.prepare_batch import FlatBatch, PrepareBatch, prepare_batch_torch


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("tokens", "page_table")),
        *((name, ctypes.c_void_p) for name in ("computed", "rows", "query_lens", "logits_rows")),
        *((name, ctypes.c_int64) for name in ("max_len", "max_pages", "page_size", "R", "wanted")),
    ]


def prepare_batch_in_c(element: str) -> PrepareBatch:
    """PrepareBatch by the library for one element type, of which it knows nothing. Raises CpuKernelsUnavailable."""
    library = load(element)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    sizes_of, fill = library.batch_sizes, library.prepare_batch
    sizes_of.argtypes, sizes_of.restype = [pointer] * 2, None
    fill.argtypes, fill.restype = [pointer] * 8 + [integer] * 3, None

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
        """See PrepareBatch."""
        R, wanted = len(rows), len(logits_rows)
        padded = R > 0 and int(rows[-1]) < 0
        if out is not None or padded or num_decode is None:  # what devices need; here nobody asks for it
            batch = prepare_batch_torch(
                tokens,
                computed,
                page_table,
                rows,
                query_lens,
                logits_rows,
                page_size=page_size,
                num_decode=num_decode,
                pad_tokens=pad_tokens,
                pad_logits=pad_logits,
                num_pages=num_pages,
                out=out,
            )
            return _without_padding_rows(batch, int((rows >= 0).sum())) if padded else batch
        tables, numbers = (tokens, page_table), (computed, rows, query_lens, logits_rows)
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in tables)
        assert all(x.dtype == torch.int64 and x.is_contiguous() for x in numbers)
        given = _Rows(
            *(x.data_ptr() for x in (*tables, *numbers)), tokens.shape[1], page_table.shape[1], page_size, R, wanted
        )
        sizes = (ctypes.c_int64 * 2)()
        sizes_of(ctypes.byref(given), sizes)
        T, L, P = max(pad_tokens, sizes[0]), max(pad_logits, wanted), sizes[1] if num_pages is None else num_pages
        numbers_out = torch.empty(3 * T + R + 1 + R + L, dtype=torch.int64)
        ids, positions, slots, query_start, seq_lens, index = torch.split(numbers_out, [T, T, T, R + 1, R, L])
        pages = torch.empty(R, P, dtype=torch.int32)
        outputs = (ids, positions, slots, query_start, seq_lens, index, pages)
        fill(ctypes.byref(given), *(x.data_ptr() for x in outputs), T, L, P)
        return FlatBatch(ids, positions, slots, query_start, seq_lens, pages, index, num_decode)

    return prepare_batch


def _without_padding_rows(batch: FlatBatch, real: int) -> FlatBatch:
    """The batch with its first `real` rows alone: C knows no others."""
    assert batch.num_decode is not None
    return replace(
        batch,
        query_start=batch.query_start[: real + 1],
        seq_lens=batch.seq_lens[:real],
        page_table=batch.page_table[:real],
        num_decode=min(batch.num_decode, real),
    )
