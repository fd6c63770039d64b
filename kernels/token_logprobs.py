"""Log-probabilities and ranks of some tokens, without a [rows, vocab] softmax."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenLogprobs(Protocol):
    """token_logprobs(logits, ids) -> (logprobs, ranks).

    logits    [R, V] model dtype, at least one finite in each row; ids [R, K] int64
    logprobs  [R, K] fp32: logits[r, id] - log sum_v exp(logits[r, v])
    ranks     [R, K] int64: how many tokens of the row have a greater logit; 0 is the likeliest
    """

    def __call__(self, logits: Tensor, ids: Tensor, /) -> tuple[Tensor, Tensor]: ...


def token_logprobs_torch(logits: Tensor, ids: Tensor, /) -> tuple[Tensor, Tensor]:
    """Reference: see TokenLogprobs."""
    wide = logits.float()
    chosen = wide.gather(1, ids)
    ranks = (wide.unsqueeze(1) > chosen.unsqueeze(2)).sum(-1)
    return chosen - wide.logsumexp(-1, keepdim=True), ranks
