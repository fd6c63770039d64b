"""The likeliest tokens of each row, ties by lower id, on whatever device the logits are."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 128
_LEAST = torch.iinfo(torch.int64).min


def likeliest(logits: Tensor, count: int, /) -> Tensor:
    """[R, count] int64: ids of the greatest of logits [R, V], the greatest first; count is V at most.

    One key a token, its fp32 bits in the order of its value above its id: no two are equal, so which of equal logits
    come out depends on no algorithm, and not on the rows beside it. logits of bf16 are often equal. Few keys are made:
    the `count` blocks of tokens whose greatest are the greatest, earlier blocks first among equals, hold what is asked.
    """
    V = logits.shape[1]
    whole = V // _BLOCK * _BLOCK
    if whole < 4 * count * _BLOCK:
        return V - 1 - (_keys(logits, torch.arange(V, device=logits.device), V).topk(count).values & 0xFFFFFFFF)
    greatest = logits[:, :whole].view(len(logits), -1, _BLOCK).amax(-1)  # [R, blocks]
    if whole < V:
        greatest = torch.cat([greatest, logits[:, whole:].amax(-1, keepdim=True)], 1)
    blocks = likeliest(greatest, count)
    ids = (blocks.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK, device=logits.device)).flatten(1)
    keys = _keys(logits.gather(1, ids.clamp(max=V - 1)), ids, V)
    keys = torch.where(ids < V, keys, _LEAST)
    return V - 1 - (keys.topk(count).values & 0xFFFFFFFF)


def _keys(values: Tensor, ids: Tensor, V: int) -> Tensor:
    """int64 of the shape of values, of tokens with these ids."""
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: -0 and 0 are equal
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (order << 32) + (V - 1 - ids)
