"""Device: how a runner brings bytes over, gets results back and repeats a step. The CPU's; a GPU's is in cuda.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.step_shape import StepShape

Run = Callable[[StepShape], Tensor]
Fetched = Callable[[], Tensor]
"""Waits for a result and gives it in the host's memory."""


class Device(Protocol):
    """Where steps run. Whatever is asked of it happens in the order in which it is asked."""

    def upload(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device."""
        ...

    def fetch(self, result: Tensor) -> Fetched:
        """Have a step's result brought over, and say how to get it."""
        ...

    def run(self, shape: StepShape, run: Run) -> Tensor:
        """run(shape), or a graph of it."""
        ...

    def relieve(self) -> None:
        """Memory ran out: give back what is only kept for later."""
        ...


class HostDevice:
    """The CPU: all of it is done when a call returns."""

    def upload(self, values: NDArray[Any]) -> Tensor:
        """See Device."""
        return torch.from_numpy(values)

    def fetch(self, result: Tensor) -> Fetched:
        """See Device."""
        return lambda: result

    def run(self, shape: StepShape, run: Run) -> Tensor:
        """See Device."""
        return run(shape)

    def relieve(self) -> None:
        """See Device: the CPU's allocator keeps nothing."""
