"""The likeliest tokens of each row, ties by lower id, on whatever device the logits are."""

from __future__ import annotations

import torch
from torch import Tensor


def likeliest(logits: Tensor, count: int, /) -> Tensor:
    """[R, count] int64: ids of the greatest of logits [R, V], the greatest first; count is V at most.

    One key a token, its fp32 bits in the order of its value above its id: no two are equal, so which of equal logits
    come out depends on no algorithm, and not on the rows beside it. logits of bf16 are often equal.
    """
    V = logits.shape[1]
    bits = (logits.float() + 0.0).view(torch.int32)  # + 0.0: -0 and 0 are equal
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (order << 32) + torch.arange(V - 1, -1, -1, device=logits.device)
    return V - 1 - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)
