"""What a launcher launches, without a GPU: the call, with the types and alignments that Triton would see.

Takes a launcher's own call on tensors of the CPU, whose addresses are aligned as a GPU allocator's are. Nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernels.gpu.architectures import Architecture

TARGETS = {
    Architecture.SM_80: GPUTarget("cuda", 80, 32),
    Architecture.SM_90: GPUTarget("cuda", 90, 32),
    Architecture.SM_100: GPUTarget("cuda", 100, 32),
    Architecture.GFX942: GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Launch:
    """One kernel as it would be compiled for one target. Two launches of equal `key` share their machine code."""

    kernel: str
    grid: tuple[int, ...]
    source: ASTSource
    options: dict[str, Any]
    key: str


def record(call: Callable[[], object], target: Architecture) -> list[Launch]:
    """The launches that `call` makes, in order, for `target`."""
    backend = make_backend(TARGETS[target])
    launches = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bind = create_function_from_signature(self.signature, self.params, backend)
        kwargs["debug"] = False
        bound, specialization, _ = bind(*args, **kwargs)
        options, signature, constexprs, attributes = self._pack_args(backend, kwargs, bound, specialization, None)
        source = ASTSource(self, signature, constexprs, attributes)
        key = f"{self.__name__} {specialization} {options.num_warps} {options.num_stages}"
        launches.append(Launch(self.__name__, tuple(grid), source, dict(options.__dict__), key))

    with patch.object(JITFunction, "run", run):
        call()
    return launches
