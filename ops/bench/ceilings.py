"""A CPU's ceilings, measured: how fast it reads a working set of some size, how fast it multiplies in bf16; and floors.

A floor is the least time that a step can take here: the bytes it must read (each weight once, each key and value that
is looked at once) at the rate at which this machine reads as much again and again, or its operations at the rate of
its best product, whichever is slower. Small working sets lie in caches, so the rate depends on the size.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kernels.linear import Linear
from ops.bench.kernel_cases import Model
from worker.models.config import read_config

_SIZES_MIB = (4, 8, 16, 24, 32, 48, 64, 128, 512)
_LEAST_S = 0.12  # of each measurement


@dataclass(frozen=True)
class CpuCeilings:
    """reads: (bytes of a working set, bytes/s), ascending; flop_s of bf16 products with fp32 sums."""

    reads: list[tuple[int, float]]
    flop_s: float

    def bytes_s(self, working_set: float) -> float:
        """The rate for a working set, between those measured by their sizes."""
        sizes = [size for size, _ in self.reads]
        at = bisect_left(sizes, working_set)
        if at == 0 or at == len(sizes):
            return self.reads[min(at, len(sizes) - 1)][1]
        (low, slow), (high, fast) = self.reads[at - 1], self.reads[at]
        return slow + (fast - slow) * (working_set - low) / (high - low)

    def better(self, other: CpuCeilings) -> CpuCeilings:
        """The higher of each of two measurements: what disturbs one only makes it lower."""
        reads = [(size, max(a, b)) for (size, a), (_, b) in zip(self.reads, other.reads, strict=True)]
        return CpuCeilings(reads, max(self.flop_s, other.flop_s))

    def floor_s(self, moved: float, flops: float) -> float:
        """The least time for reading `moved` bytes, the working set of each step, and `flops` operations."""
        return max(moved / self.bytes_s(moved), flops / self.flop_s)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "read_gb_s": {f"{size >> 20} MiB": round(rate / 1e9, 1) for size, rate in self.reads},
            "bf16_gflop_s": round(self.flop_s / 1e9, 1),
        }

    def said(self) -> str:
        """In a line."""
        rates = ", ".join(f"{rate / 1e9:.0f} of {size >> 20} MiB" for size, rate in self.reads)
        return f"this machine reads GB/s: {rates}; multiplies {self.flop_s / 1e9:.0f} GFLOP/s of bf16"


def measured(*, quick: bool = False) -> CpuCeilings:
    """With the threads that torch has; five seconds. quick: two sizes, and no care."""
    sizes = _SIZES_MIB[:2] if quick else _SIZES_MIB
    least = 0.005 if quick else _LEAST_S
    reads = []
    for mib in sizes:
        numbers = torch.ones(mib << 18, dtype=torch.float32)
        best = min(_best_s(call, least) for call in (numbers.sum, numbers.max, lambda x=numbers: torch.dot(x, x)))
        reads.append((mib << 20, (mib << 20) / best))
    side = 256 if quick else 2048
    x, weight = (torch.randn(side, side).to(torch.bfloat16) for _ in range(2))
    with torch.inference_mode():
        ours = Linear(weight.clone())
        product_s = min(_best_s(lambda: F.linear(x, weight), least), _best_s(lambda: ours(x), least))
    return CpuCeilings(reads, 2 * side**3 / product_s)


def shape_of(directory: Path) -> Model:
    """A checkpoint's shape, for counting its bytes and operations."""
    config = read_config(directory)
    return Model(
        directory.name,
        config.num_layers,
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.tied_embeddings,
    )


def _best_s(call: Callable[[], object], least: float) -> float:
    """The fastest of the calls that fit into `least` seconds, three at least: a ceiling is what is possible."""
    call()
    times, until = list[float](), time.perf_counter() + least
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
