"""Staged changes of state that lives on a device: many short pieces, written wherever they belong, in one operation."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class WriteSpans(Protocol):
    """write_spans(state, packed, count): state[where + i] = packed[first + i] for 0 <= i < length, of each span.

    state   [N] int32, N < 2^31, written in place
    packed  [M] int32: `count` spans (where, first, length) in front, then the words they bring; first counts from
            packed's own beginning. One tensor, so that one copy brings all of it to the device

    No two spans write the same word: they are written in no order.
    """

    def __call__(self, state: Tensor, packed: Tensor, count: int, /) -> None: ...


def write_spans_torch(state: Tensor, packed: Tensor, count: int, /) -> None:
    """Reference: see WriteSpans. Waits for the device to know the spans."""
    for where, first, length in packed[: 3 * count].view(count, 3).tolist():
        state[where : where + length] = packed[first : first + length]
