"""From how many rows on a quantised weight is better written out in the model's dtype: counted.

Seconds for each weight of a product with T rows, in the units of a data sheet:

    as codes     max(bytes / memory, tiles * work / lanes + 2 T / products),  tiles = T / 64, rounded up
    written out  (bytes + 2) / memory + max(2 / memory, 2 T / products)

Each tile of 64 rows makes its numbers from the codes again; written out, they are made once, written and read. `work`
is what ordinary arithmetic does for a weight: shift, mask, convert, subtract, multiply, round, and its way through
shared memory. Scales and zeros, a fiftieth of the bytes, are left out. What no count shows (how well copies, arithmetic
and products overlap, what the library reaches of its ceiling) is why `make gpu-bench-kernels` times both sides.

An H200's figures (ops/bench/LOG.md, 42) put the crossing where this puts sm_90's. They do not test the parts: `work` is
from before two codes at once became numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.gpu.architectures import Architecture
from ops.bench.device import DATA_SHEETS, Ceilings

TILE = 64
WORK = {4: 8, 8: 6}


@dataclass(frozen=True)
class Card:
    """The largest card of an architecture, and its lanes of ordinary arithmetic times its clock."""

    ceilings: Ceilings
    operations_s: float


CARDS = {
    Architecture.SM_80: Card(DATA_SHEETS["a100"], 108 * 64 * 1.41e9),
    Architecture.SM_90: Card(DATA_SHEETS["h200"], 132 * 128 * 1.755e9),
    Architecture.SM_100: Card(DATA_SHEETS["b200"], 148 * 128 * 1.9e9),
    Architecture.GFX942: Card(DATA_SHEETS["mi300x"], 304 * 64 * 2.1e9),
}


def as_codes_s(card: Card, bits: int, rows: int) -> float:
    """Of one weight, multiplied as codes."""
    tiles = -(-rows // TILE)
    compute = tiles * WORK[bits] / card.operations_s + 2 * rows / card.ceilings.flop_s
    return max(bits / 8 / card.ceilings.bytes_s, compute)


def written_out_s(card: Card, bits: int, rows: int) -> float:
    """Of one weight, written out first."""
    memory = card.ceilings.bytes_s
    return (bits / 8 + 2) / memory + max(2 / memory, 2 * rows / card.ceilings.flop_s)


def most_rows(card: Card, bits: int) -> int:
    """The most rows, in whole tiles, for which codes are as good."""
    tiles = 1
    while as_codes_s(card, bits, (tiles + 1) * TILE) <= written_out_s(card, bits, (tiles + 1) * TILE):
        tiles += 1
    return tiles * TILE
