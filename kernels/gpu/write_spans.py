"""Staged changes of the rows' state, on the device: see kernels/write_spans.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def write_spans(state: Tensor, packed: Tensor, count: int, /) -> None:
    """See WriteSpans."""
    assert state.is_contiguous()
    assert packed.is_contiguous()
    if count:
        _write_spans[(count,)](state, packed, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False)


@triton.jit
def _write_spans(
    state_ptr,  # [N] int32
    packed_ptr,  # [M] int32: (where, first, length) of each span, then the words
    BLOCK: tl.constexpr,
):
    """Grid (spans,): a copy each."""
    span = packed_ptr + tl.program_id(0) * 3
    where = tl.load(span).to(tl.int64)
    first = tl.load(span + 1).to(tl.int64)
    length = tl.load(span + 2)
    for start in tl.range(0, length, BLOCK):
        at = start + tl.arange(0, BLOCK)
        words = tl.load(packed_ptr + first + at, mask=at < length, other=0)
        tl.store(state_ptr + where + at, words, mask=at < length)
