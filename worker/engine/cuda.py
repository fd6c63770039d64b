"""A GPU as a DeviceRunner sees it: pinned buffers, events, graphs; memory; and whoever compiles when he shouldn't.

All that can only run where there is a GPU is here and in gpu_start.py. Seen on an H200 (ops/bench/LOG.md, 42 to 47).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.devices import Fetched, Run
from worker.engine.step_shape import StepShape

_LEAST_WORDS = 1 << 14  # of a pinned buffer


class _Pinned:
    """Pinned buffers taken in turns. One is free again when the copy out of it or into it is done and, where it holds a
    result, when that was read; two are enough for a loop that runs one step ahead. None is ever waited for."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: list[_Buffer] = []

    def take(self, count: int) -> _Buffer:
        """A free buffer of `count` elements or more; a new one if there is none."""
        for buffer in self._buffers:
            if buffer.is_free and buffer.memory.numel() >= count and buffer.copied.query():  # type: ignore[no-untyped-call]
                return buffer
        size = max(_LEAST_WORDS, 1 << (count - 1).bit_length())
        memory = torch.empty(size, dtype=self._dtype, pin_memory=True)
        self._buffers.append(_Buffer(memory, torch.cuda.Event()))  # type: ignore[no-untyped-call]
        return self._buffers[-1]


@dataclass
class _Buffer:
    memory: Tensor
    copied: torch.cuda.Event
    is_free: bool = True


class CudaDevice:
    """See Device. Everything goes through one stream, in the order in which it is asked."""

    def __init__(self) -> None:
        self._out, self._in = _Pinned(torch.int32), _Pinned(torch.int64)
        self._graphs: dict[StepShape, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._captures = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._stream = torch.cuda.current_stream()  # where everything goes; to ask for it takes as long as to record

    def upload(self, values: NDArray[Any]) -> Tensor:
        """See Device. values int32."""
        buffer = self._out.take(values.size)
        words = buffer.memory[: values.size]
        words.numpy()[:] = values.ravel()
        there = torch.empty(values.shape, dtype=torch.int32, device="cuda")
        there.view(-1).copy_(words, non_blocking=True)
        buffer.copied.record(self._stream)
        return there

    def fetch(self, result: Tensor) -> Fetched:
        """See Device. result int64."""
        count = result.numel()
        buffer = self._in.take(count)
        buffer.is_free = False
        buffer.memory[:count].copy_(result.reshape(-1), non_blocking=True)
        buffer.copied.record(self._stream)

        def wait() -> Tensor:
            buffer.copied.synchronize()
            buffer.is_free = True
            return buffer.memory[:count].view(result.shape).clone()

        return wait

    @property
    def num_graphs(self) -> int:
        """Steps that are kept as graphs."""
        return len(self._graphs)

    def run(self, shape: StepShape, run: Run) -> Tensor:
        """See Device."""
        if shape not in self._graphs:
            return run(shape)
        graph, result = self._graphs[shape]
        graph.replay()
        return result

    def relieve(self) -> None:
        """See Device. Waits for the device."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Within it, run all that is to be captured: libraries set themselves up, which a capture may not hold."""
        torch.cuda.synchronize()
        stream, self._stream = self._stream, self._captures
        with torch.cuda.stream(self._captures):
            yield
        self._stream = stream
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what was taken here no other stream has

    def capture(self, shapes: Items[StepShape], run: Run) -> None:
        """Keep run(shape) as a graph for each, that of the most tokens first, whose pool has memory for all others."""
        pool = torch.cuda.graph_pool_handle()
        for shape in sorted(shapes, key=lambda shape: shape.tokens, reverse=True):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=self._captures):
                result = run(shape)
            self._graphs[shape] = graph, result
        torch.cuda.synchronize()


@dataclass(frozen=True)
class MemoryFigures:
    """What a GPU's memory is used for, in bytes."""

    total: int
    weights: int
    step_peak: int  # what a step of the most tokens takes beside weights and pages
    graphs: int  # what the largest graph takes, which its pool keeps
    kept_free: int
    pages: int  # what is left for K/V


def measured_memory(share: float, largest: Callable[[], object], captured: Callable[[], object]) -> MemoryFigures:
    """Run the largest step as it is, and as a graph holds it, and see what they leave for pages of K/V.

    share: of the GPU's memory that may be taken, other processes' included.
    """
    weights = torch.cuda.memory_allocated()
    peak, graphs = _peak(largest), _peak(captured)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    kept = int((1.0 - share) * total)
    return MemoryFigures(total, weights, peak, graphs, kept, max(0, free - peak - graphs - kept))


def _peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class CompileWatch:
    """Counts what Triton compiles once the engine is warm, by name: each is a stall that warm-up should have met."""

    def __init__(self) -> None:
        self.late: list[str] = []
        self._raises = False

    def start(self) -> None:
        """From now on."""
        import triton

        triton.knobs.runtime.jit_post_compile_hook = self.compiled

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within it a compilation is an error, for tests."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def compiled(self, *, repr: str = "", already_compiled: bool = False, **_: Any) -> None:  # noqa: A002 (Triton's)
        """Triton's hook. Raises RuntimeError within `raising`."""
        if already_compiled:
            return
        self.late.append(repr)
        if self._raises:
            raise RuntimeError(f"compiled after warm-up: {repr}")
