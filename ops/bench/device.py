"""A GPU's ceilings: how fast it reads and multiplies. Measured where there is one, else as its maker says."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

CALLS = 8  # of a kernel in the graph that is timed


@dataclass(frozen=True)
class Ceilings:
    """bytes_s of memory reads, flop_s of dense bf16 products with fp32 sums; and where they come from."""

    device: str
    bytes_s: float
    flop_s: float
    measured: bool

    def floor_s(self, moved: float, flops: float) -> float:
        """The least time: the slower of moving `moved` bytes and doing `flops` operations."""
        return max(moved / self.bytes_s, flops / self.flop_s)


DATA_SHEETS = {
    "a100": Ceilings("NVIDIA A100 SXM 80 GB", 2.04e12, 312e12, False),
    "h100": Ceilings("NVIDIA H100 SXM", 3.35e12, 989e12, False),
    "h200": Ceilings("NVIDIA H200", 4.8e12, 989e12, False),
    "b200": Ceilings("NVIDIA B200", 8.0e12, 2250e12, False),
    "mi300x": Ceilings("AMD MI300X", 5.3e12, 1307e12, False),
}
"""What is predicted with where there is no GPU. Real ceilings lie some 10 % (memory) to 30 % (products) below."""


def measured_ceilings() -> Ceilings:
    """Of the current GPU: the sum of 4 GiB that no cache holds, and a product of 8192 x 8192 matrices."""
    many = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    read_s = seconds(many.sum)
    del many
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_s = seconds(lambda: a @ b)
    return Ceilings(torch.cuda.get_device_name(), 4 * (1 << 30) / read_s, 2 * 8192**3 / product_s, True)


def seconds(call: Callable[[], object], runs: int = 20) -> float:
    """What a call takes on the GPU in a graph, where the host's launches cost nothing and no cache helps: the median of
    `runs`, each of CALLS calls behind writes of 128 MiB, less those writes alone."""
    flush = torch.empty(1 << 25, dtype=torch.float32, device="cuda")
    whole, writes = _captured(lambda: (flush.zero_(), call())), _captured(flush.zero_)
    both, alone = [], []
    for _ in range(runs):
        both.append(_took(whole))
        alone.append(_took(writes))
    return (statistics.median(both) - statistics.median(alone)) / CALLS


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """CALLS calls as a graph, warmed up."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives it no types
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            call()
    graph.replay()
    return graph


def _took(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # nor this
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def provenance() -> dict[str, Any]:
    """What a result is kept with: the command and what it ran on."""
    found: dict[str, Any] = {"command": f"python -m ops.bench {' '.join(sys.argv[1:])}"}
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
