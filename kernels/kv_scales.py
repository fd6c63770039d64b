"""What stored keys and values are multiplied by, where pages hold a smaller dtype than the model's.

Two kinds: `(k, v)`, one factor for all keys and one for all values of a layer, known beforehand (FP8); or a tensor
[pages, 2, Hkv, page_size] fp32 beside the pages, a factor for each token and head, found when the token is written
(INT8: the greatest of the head over 127). None: pages hold the model's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

KvScales = tuple[float, float] | Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0, torch.float8_e5m2: 57344.0}
"""The greatest value of each dtype that K/V may be stored in, beside the model's own."""


def stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """values, fp32 and already divided by their scale, as dtype: rounded to the nearest, clamped to the greatest."""
    if dtype not in LARGEST:
        return values.to(dtype)
    within = values.clamp(-LARGEST[dtype], LARGEST[dtype])
    return (within.round() if dtype == torch.int8 else within).to(dtype)


def token_scales(entries: Tensor, dtype: torch.dtype) -> Tensor:
    """[...] fp32 for entries [..., D]: what takes the greatest of each head to the greatest of dtype; 1 for zeros.

    NaN where an entry is: it must not come back as a number.
    """
    greatest = entries.float().abs().amax(-1) / LARGEST[dtype]
    return greatest.masked_fill(greatest == 0, 1.0)
