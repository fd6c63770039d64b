"""Shapes of steps: few enough that a device can keep each as a graph, close enough that padding costs little.

A step of decodes alone is padded to one of some rows, another (chunks of prompts beside decodes) to all rows there are
and to one of some numbers of tokens. How many of those rows decode the device alone is told: a graph does for any.
"""

from __future__ import annotations

from dataclasses import dataclass

DRAWS = 4
"""Draws of a step are a multiple of this, so that columns of their values begin at multiples of 16 bytes: a kernel is
compiled once more for a tensor that doesn't."""


@dataclass(frozen=True)
class StepShape:
    """Rows, tokens and draws of a step, padding among them. A draw belongs to the row of its number, or to padding."""

    rows: int
    tokens: int
    draws: int
    decodes: bool  # each row adds one token


def step_shapes(max_rows: int, most_tokens: int, *, alone: bool) -> tuple[list[StepShape], list[StepShape]]:
    """(of decodes alone, of others), by size, for any plan of up to max_rows rows and most_tokens tokens.

    alone: one row may be a step; products of one row have kernels of their own, which fixed orders have no use for.
    """
    rows = decode_sizes(max_rows, alone=alone)
    all_rows = rows[-1]
    decodes = [StepShape(size, size, _draws(size), decodes=True) for size in rows]
    return decodes, [StepShape(all_rows, size, all_rows, decodes=False) for size in mixed_sizes(most_tokens)]


def decode_sizes(max_rows: int, *, alone: bool) -> list[int]:
    """Rows of steps of decodes alone: from 16 on at most half as much again as there are."""
    sizes = [4, 8, 16, 24, 32, 48, *range(64, 257, 32), *range(320, max_rows, 64)]
    return [*([1] if alone else []), *(size for size in sizes if size < max_rows), _draws(max_rows)]


def mixed_sizes(most_tokens: int) -> list[int]:
    """Tokens of steps with prompts: from 512 on an eighth more than there are at most. Few tokens take the time that
    reading the weights takes, however many they are."""
    sizes, size = [8, 16, 32], 64
    while size < most_tokens:
        sizes.append(size)
        size += max(64, (1 << size.bit_length()) // 16)
    return [*(size for size in sizes if size < most_tokens), max(2, most_tokens)]


def _draws(count: int) -> int:
    return -(-count // DRAWS) * DRAWS
