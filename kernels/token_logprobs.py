"""Log-probabilities of some tokens, without a [rows, vocab] softmax."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenLogprobs(Protocol):
    """token_logprobs(logits, ids) -> logprobs.

    logits    [R, V] model dtype, at least one finite in each row; ids [R, K] int64
    logprobs  [R, K] fp32: logits[r, id] - log sum_v exp(logits[r, v])
    """

    def __call__(self, logits: Tensor, ids: Tensor, /) -> Tensor: ...


def token_logprobs_torch(logits: Tensor, ids: Tensor, /) -> Tensor:
    """Reference: see TokenLogprobs. In fp64: torch cuts sums up by how many rows there are, and rounding hides it."""
    wide = logits.double()
    return (wide.gather(1, ids) - wide.logsumexp(-1, keepdim=True)).float()
