"""Log-probabilities as events and results carry them: three runs of bytes, little-endian, four a value.

    of    fp32, one per token: its log-probability
    ids   int32, n per token: the likeliest tokens in its place
    top   fp32, n per token: their log-probabilities; -inf fills up where there are fewer than n

Numbers of msgpack would take twice the bytes, and with twenty alternatives a token a long result would have more
values than wire.py lets anyone unpack.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from producer.protocol import TokenLogprob

Logprob = tuple[float, Sequence[int], Sequence[float]]
"""A token's log-probability, the likeliest ids in its place, and theirs. fp32 values: they come back to the bit."""


def pack(logprobs: Sequence[Logprob]) -> dict[str, bytes]:
    """The map that `unpack` takes."""
    width = max((len(ids) for _, ids, _ in logprobs), default=0)
    ids = array("i", (one for _, top, _ in logprobs for one in (*top, *[0] * (width - len(top)))))
    values = array("f", (one for _, _, top in logprobs for one in (*top, *[-math.inf] * (width - len(top)))))
    return {"of": _bytes(array("f", (own for own, _, _ in logprobs))), "ids": _bytes(ids), "top": _bytes(values)}


def unpack(fields: Any) -> tuple[TokenLogprob, ...]:
    """What `pack` was given. Raises ValueError for what it can't have made."""
    if not isinstance(fields, dict) or set(fields) != {"of", "ids", "top"}:
        raise ValueError("expected a map of the runs `of`, `ids` and `top`")
    own, ids, top = (_values(code, fields[name], name) for code, name in (("f", "of"), ("i", "ids"), ("f", "top")))
    width, rest = divmod(len(ids), max(1, len(own)))
    if rest or len(top) != len(ids):
        raise ValueError(f"{len(own)} tokens have {len(ids)} ids and {len(top)} values beside them")
    if any(value != value or value == math.inf for value in (*own, *top)) or -math.inf in own:
        raise ValueError("a log-probability is no number")
    return tuple(
        TokenLogprob(
            logprob=value,
            top=tuple((ids[at], top[at]) for at in range(first * width, (first + 1) * width) if top[at] != -math.inf),
        )
        for first, value in enumerate(own)
    )


def plain(logprobs: Iterable[TokenLogprob]) -> list[Logprob]:
    """As `pack` takes them."""
    return [(one.logprob, [id_ for id_, _ in one.top], [value for _, value in one.top]) for one in logprobs]


def _bytes(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _values(code: str, run: Any, name: str) -> array[Any]:
    values: array[Any] = array(code)
    if not isinstance(run, bytes) or len(run) % values.itemsize:
        raise ValueError(f"{name}: expected bytes, {values.itemsize} a value")
    values.frombytes(run)
    if sys.byteorder == "big":
        values.byteswap()
    return values
