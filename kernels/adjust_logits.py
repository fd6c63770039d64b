"""What is done to logits before sampling: bias, allowed tokens, penalties. In place, in this order, in fp32.

Repetition is as `transformers` has it (Keskar et al. 2019, arXiv 1909.05858), over prompt and output; presence and
frequency are as the OpenAI API has them, over the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Penalties:
    """What rows have had so far, and what it costs. Histories lie by seat, so that they stay where they are.

    rows        [R] int64: each row's seat
    in_prompt   [max_rows, ceil(V / 32)] int32: bit t % 32 of word t // 32 is token t
    counts      [max_rows, V] int32: how often each token was put out
    repetition  [R] fp32, > 0, 1: off;  presence, frequency [R] fp32, 0: off
    """

    rows: Tensor
    in_prompt: Tensor
    counts: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


class AdjustLogits(Protocol):
    """adjust_logits(logits, bias=None, allowed=None, penalties=None) -> logits.

    logits     [R, V] model dtype, written in place; rounded once after bias and once at the end
    bias       (row [B] int64, token [B] int64, value [B] fp32), each pair of row and token once: added
    allowed    [R, ceil(V / 32)] int32, bits as in_prompt's: other tokens become -inf
    penalties  x of a token in prompt or output becomes x / repetition if x > 0, else x * repetition; then
               x - frequency * count - presence * (count > 0)
    """

    def __call__(
        self,
        logits: Tensor,
        /,
        *,
        bias: tuple[Tensor, Tensor, Tensor] | None = None,
        allowed: Tensor | None = None,
        penalties: Penalties | None = None,
    ) -> Tensor: ...


def adjust_logits_torch(
    logits: Tensor,
    /,
    *,
    bias: tuple[Tensor, Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    penalties: Penalties | None = None,
) -> Tensor:
    """Reference: see AdjustLogits."""
    V = logits.shape[1]
    if bias is not None:
        row, token, value = bias
        logits[row, token] = (logits[row, token].float() + value).to(logits.dtype)
    if allowed is not None:
        logits.masked_fill_(~unpacked(allowed, V), float("-inf"))
    if penalties is not None:
        p, wide = penalties, logits.float()
        counts = p.counts[p.rows]
        seen = unpacked(p.in_prompt[p.rows], V) | (counts > 0)
        repetition = p.repetition.unsqueeze(1)
        wide = torch.where(seen, torch.where(wide > 0, wide / repetition, wide * repetition), wide)
        wide = wide - p.frequency.unsqueeze(1) * counts - p.presence.unsqueeze(1) * (counts > 0)
        logits.copy_(wide)
    return logits


def unpacked(bits: Tensor, count: int) -> Tensor:
    """bits [R, words] int32 -> [R, count] bool: bit t % 32 of word t // 32."""
    place = torch.arange(32, device=bits.device, dtype=torch.int32)
    return (bits.unsqueeze(-1) >> place).bitwise_and(1).bool().flatten(1)[:, :count]
