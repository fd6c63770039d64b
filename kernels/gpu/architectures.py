"""Which GPU it is, and how each kernel is launched on it: one table, so that no kernel asks what it runs on.

The figures come from what compiles without spills and keeps two pages under way (`make aot` asserts both). sm_90's of
attention over heads up to 128 and of products were chosen by sweeps on an H200 (ops/bench/LOG.md, 42, 44, 45); no other
has seen hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch


class Architecture(StrEnum):
    """The rows of the tables below. Other GPUs take the row of the nearest one with no more shared memory."""

    SM_80 = "sm_80"
    SM_90 = "sm_90"
    SM_100 = "sm_100"
    GFX942 = "gfx942"


@dataclass(frozen=True)
class AttentionLaunch:
    """Of one attention: query rows and keys of a tile, warps, pipeline stages.

    With the page number loaded in the loop, as decode and the fixed order do, Triton keeps (stages - 1) // 2 tiles of
    keys under way on NVIDIA's GPUs, so 5 is the least that copies one tile while it computes on another; prefill's own
    loops know the numbers beforehand, and 3 do.
    """

    block_m: int
    tile: int
    warps: int
    stages: int


class Kind(StrEnum):
    """What decides over a tile beside the architecture: registers, for the most part."""

    SMALL = "heads up to 128"
    LARGE = "heads up to 256"
    NARROW = "heads up to 128, pages of a smaller dtype"
    LARGE_NARROW = "heads up to 256, pages of a smaller dtype"

    @classmethod
    def of(cls, head_size: int, narrow: bool) -> Kind:
        """Of heads of this size, in pages of the model's dtype or a smaller one."""
        if head_size <= 128:
            return cls.NARROW if narrow else cls.SMALL
        return cls.LARGE_NARROW if narrow else cls.LARGE


def _by_kind(*launches: tuple[int, int, int, int]) -> dict[Kind, AttentionLaunch]:
    return {kind: AttentionLaunch(*launch) for kind, launch in zip(Kind, launches, strict=True)}


DECODE_ATTENTION: dict[Architecture, dict[Kind, AttentionLaunch]] = {
    Architecture.SM_80: _by_kind((16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5)),
    Architecture.SM_90: _by_kind((16, 64, 2, 5), (16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5)),
    Architecture.SM_100: _by_kind((16, 64, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5)),
    Architecture.GFX942: _by_kind((16, 32, 4, 2), (16, 32, 4, 1), (16, 32, 4, 1), (16, 32, 4, 1)),
}
MANY_ROWS = 16
MANY_ATTENTION = {
    **DECODE_ATTENTION,
    Architecture.SM_90: _by_kind((16, 64, 2, 3), (16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5)),
}
"""Decode attention from MANY_ROWS rows on. On an H200 half the shared memory, so more programs at once, reads up to a
fifth faster than tiles copied ahead within a program; with few rows it is the other way round (LOG 42)."""

FIXED_ATTENTION = {
    **DECODE_ATTENTION,
    Architecture.SM_90: _by_kind((16, 64, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5)),
}
"""Both attentions in the fixed order, where prefill's walk over chunks takes more registers."""
FIXED_MANY_ATTENTION = {
    **FIXED_ATTENTION,
    Architecture.SM_90: _by_kind((16, 64, 4, 3), (16, 32, 4, 5), (16, 32, 4, 5), (16, 32, 4, 5)),
}
"""Decode attention in the fixed order from MANY_ROWS rows on: other stages change no bit."""

PREFILL_ATTENTION: dict[Architecture, dict[Kind, AttentionLaunch]] = {
    Architecture.SM_80: _by_kind((128, 64, 8, 3), (64, 32, 8, 2), (128, 32, 8, 3), (64, 32, 8, 3)),
    Architecture.SM_90: _by_kind((64, 64, 4, 3), (128, 32, 8, 3), (128, 32, 8, 3), (64, 32, 8, 3)),
    Architecture.SM_100: _by_kind((128, 64, 8, 3), (128, 32, 8, 3), (128, 32, 8, 3), (64, 32, 8, 3)),
    Architecture.GFX942: _by_kind((64, 32, 4, 1), (64, 32, 4, 1), (128, 32, 8, 1), (64, 32, 8, 1)),
}
EXTRA: dict[Architecture, dict[str, int]] = {
    Architecture.SM_80: {},
    Architecture.SM_90: {},
    Architecture.SM_100: {},
    Architecture.GFX942: {"waves_per_eu": 1, "matrix_instr_nonkdim": 16, "kpack": 2},
}
"""Options that only some compilers know, for kernels with products."""

LAUNCH_PROGRAMS: dict[Architecture, int] = {
    Architecture.SM_80: 216,
    Architecture.SM_90: 264,
    Architecture.SM_100: 296,
    Architecture.GFX942: 608,
}
"""Two programs for each multiprocessor of the largest card: how many decode attention aims at when it splits keys."""

FEW_STAGES: dict[Architecture, int] = {
    Architecture.SM_80: 3,
    Architecture.SM_90: 4,
    Architecture.SM_100: 4,
    Architecture.GFX942: 2,
}
"""Of products of few rows: how many tiles of weights are on their way or at hand."""


@dataclass(frozen=True)
class ProductLaunch:
    """Of a product: rows, outputs and inputs of a tile, warps, pipeline stages."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


FIXED_PRODUCT: dict[Architecture, list[tuple[int | None, ProductLaunch]]] = {
    Architecture.SM_80: [
        (16, ProductLaunch(16, 64, 128, 4, 3)),
        (64, ProductLaunch(64, 64, 64, 4, 3)),
        (None, ProductLaunch(128, 128, 64, 8, 3)),
    ],
    Architecture.SM_90: [
        (16, ProductLaunch(16, 64, 128, 4, 4)),
        (64, ProductLaunch(64, 64, 128, 4, 3)),
        (None, ProductLaunch(128, 128, 64, 8, 4)),
    ],
    Architecture.SM_100: [
        (16, ProductLaunch(16, 64, 128, 4, 4)),
        (64, ProductLaunch(64, 64, 128, 4, 3)),
        (None, ProductLaunch(128, 128, 64, 8, 3)),
    ],
    Architecture.GFX942: [
        (16, ProductLaunch(16, 64, 128, 4, 2)),
        (64, ProductLaunch(64, 64, 64, 4, 2)),
        (None, ProductLaunch(128, 128, 64, 8, 2)),
    ],
}
"""Of products in the fixed order, by most rows. sm_90's are a sweep's (LOG 45)."""

WEIGHT_ROWS: dict[Architecture, dict[int, int]] = {
    Architecture.SM_80: {4: 64, 8: 128},
    Architecture.SM_90: {4: 128, 8: 192},
    Architecture.SM_100: {4: 128, 8: 128},
    Architecture.GFX942: {4: 128, 8: 192},
}
"""Most rows that are multiplied with a weight's codes, by their bits; for more it is first written out in the model's
dtype. Counted from bytes and operations (ops/bench/crossover.py, which a test holds this against). On an H200 a gate-up
of 4 and 8 bits took 57 and 52 us for each 64 rows as codes, 173 and 180 us for 256 rows written out: for sm_90 the
crossing lies where it was counted, as near as those four figures tell. The others were not measured."""


@cache
def architecture(device: torch.device) -> Architecture:
    """The row of `device`; for the CPU (Triton's interpreter) sm_80's."""
    if device.type != "cuda":
        return Architecture.SM_80
    if torch.version.hip is not None:
        return Architecture.GFX942
    major, _ = torch.cuda.get_device_capability(device)
    return {9: Architecture.SM_90, 10: Architecture.SM_100}.get(major, Architecture.SM_80)
