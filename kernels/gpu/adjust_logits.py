"""Bias, allowed tokens and penalties: see kernels/adjust_logits.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.adjust_logits import Penalties

BLOCK = 1024


def adjust_logits(
    logits: Tensor,
    /,
    *,
    bias: tuple[Tensor, Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    penalties: Penalties | None = None,
) -> Tensor:
    """See AdjustLogits."""
    R, V = logits.shape
    assert logits.is_contiguous()
    how = {"num_warps": 4, "enable_fp_fusion": False}
    if bias is not None and len(bias[0]):
        _add_bias[(len(bias[0]),)](logits, *bias, V, **{**how, "num_warps": 1})
    if R and (allowed is not None or penalties is not None):
        p = penalties
        assert allowed is None or allowed.is_contiguous()
        assert p is None or (p.in_prompt.is_contiguous() and p.counts.is_contiguous())
        history = (p.rows, p.in_prompt, p.counts, p.repetition, p.presence, p.frequency) if p else (None,) * 6
        _adjust[(R, triton.cdiv(V, BLOCK))](
            logits, allowed, *history, V, ALLOWED=allowed is not None, PENALTIES=p is not None, BLOCK=BLOCK, **how
        )
    return logits


@triton.jit(do_not_specialize=["V"])
def _add_bias(
    logits_ptr,  # [R, V]
    row_ptr,  # [B] int64
    token_ptr,  # [B] int64
    value_ptr,  # [B] fp32
    V,
):
    """Grid (B,)."""
    pair = tl.program_id(0)
    place = logits_ptr + tl.load(row_ptr + pair) * V + tl.load(token_ptr + pair)
    total = tl.load(place).to(tl.float32) + tl.load(value_ptr + pair)
    tl.store(place, total.to(logits_ptr.dtype.element_ty))


@triton.jit
def _bit(words_ptr, token, inside):
    """Whether token's bit is set: bit t % 32 of word t // 32."""
    return (tl.load(words_ptr + token // 32, mask=inside, other=0) >> (token % 32)) & 1 != 0


@triton.jit(do_not_specialize=["V"])
def _adjust(
    logits_ptr,  # [R, V]
    allowed_ptr,  # [R, ceil(V / 32)] int32 or None
    rows_ptr,  # [R] int64; this and what follows None without penalties
    in_prompt_ptr,  # [max_rows, ceil(V / 32)] int32
    counts_ptr,  # [max_rows, V] int32
    repetition_ptr,  # [R] fp32
    presence_ptr,  # [R] fp32
    frequency_ptr,  # [R] fp32
    V,
    ALLOWED: tl.constexpr,
    PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (R, V / BLOCK), in fp32."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < V
    words = (V + 31) // 32
    place = logits_ptr + row * V + token
    logit = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if ALLOWED:
        logit = tl.where(_bit(allowed_ptr + row * words, token, inside), logit, float("-inf"))
    if PENALTIES:
        seat = tl.load(rows_ptr + row)
        count = tl.load(counts_ptr + seat * V + token, mask=inside, other=0)
        seen = _bit(in_prompt_ptr + seat * words, token, inside) | (count > 0)
        repetition = tl.load(repetition_ptr + row)
        logit = tl.where(seen, tl.where(logit > 0, logit / repetition, logit * repetition), logit)
        presence = tl.where(count > 0, tl.load(presence_ptr + row), 0.0)
        logit = logit - tl.load(frequency_ptr + row) * count.to(tl.float32) - presence
    tl.store(place, logit.to(logits_ptr.dtype.element_ty), mask=inside)
