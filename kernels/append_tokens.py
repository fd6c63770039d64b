"""After a draw: each token goes behind its row's others, and whoever reads it is told whether its logit is finite."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class AppendTokens(Protocol):
    """append_tokens(tokens, computed, seats, logits, ids) -> result.

    tokens    [S, max_len] int32, contiguous: tokens[seats[l], computed[seats[l]]] = ids[l], written in place
    computed  [S] int64, below max_len for each of seats
    seats     [L] int64; of draws for one seat, which only padding has, any is written
    logits    [L, V] model dtype: those that were drawn from;  ids [L] int64, 0 <= id < V
    result    [2, L] int64, new: ids, and 1 where logits[l, ids[l]] is finite, else 0
    """

    def __call__(self, tokens: Tensor, computed: Tensor, seats: Tensor, logits: Tensor, ids: Tensor, /) -> Tensor: ...


def append_tokens_torch(tokens: Tensor, computed: Tensor, seats: Tensor, logits: Tensor, ids: Tensor, /) -> Tensor:
    """Reference: see AppendTokens."""
    places = seats * tokens.shape[1] + computed.index_select(0, seats)
    tokens.view(-1).index_copy_(0, places, ids.int())
    sound = torch.isfinite(logits.gather(1, ids.unsqueeze(1)).squeeze(1))
    return torch.stack((ids, sound.long()))
