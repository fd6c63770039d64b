"""Drawn tokens behind their rows' others, in one launch: see kernels/append_tokens.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DRAWS = 16  # of a program


def append_tokens(tokens: Tensor, computed: Tensor, seats: Tensor, logits: Tensor, ids: Tensor, /) -> Tensor:
    """See AppendTokens."""
    L = seats.shape[0]
    result = torch.empty(2, L, dtype=torch.int64, device=logits.device)
    for tensor in (tokens, computed, seats, ids):
        assert tensor.is_contiguous()
    assert logits.stride(1) == 1
    if L:
        _append_tokens[(triton.cdiv(L, DRAWS),)](
            tokens, computed, seats, logits, ids, result, tokens.stride(0), logits.stride(0), L, DRAWS=DRAWS,
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return result


@triton.jit(do_not_specialize=["max_len", "row_stride", "L"])
def _append_tokens(
    tokens_ptr,  # [S, max_len] int32
    computed_ptr,  # [S] int64
    seats_ptr,  # [L] int64
    logits_ptr,  # [L, V]
    ids_ptr,  # [L] int64
    result_ptr,  # [2, L] int64
    max_len,
    row_stride,
    L,
    DRAWS: tl.constexpr,
):
    """Grid (L / DRAWS,)."""
    at = tl.program_id(0) * DRAWS + tl.arange(0, DRAWS)
    inside = at < L
    seat = tl.load(seats_ptr + at, mask=inside, other=0)
    token = tl.load(ids_ptr + at, mask=inside, other=0)
    place = tl.load(computed_ptr + seat, mask=inside, other=0)
    logit = tl.load(logits_ptr + at.to(tl.int64) * row_stride + token, mask=inside, other=0.0).to(tl.float32)
    sound = tl.abs(logit) < float("inf")  # not so of a NaN
    tl.store(tokens_ptr + seat * max_len + place, token.to(tl.int32), mask=inside)
    tl.store(result_ptr + at, token, mask=inside)
    tl.store(result_ptr + L + at, sound.to(tl.int64), mask=inside)
