"""Each backend in turn, one thread, and inputs that hold NaN wherever an operation has no business."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from kernels.errors import KernelsUnavailable
from kernels.table import Backend, Ops, ops_for

OpsFor = Callable[[torch.dtype], Ops]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[Backend.TORCH, Backend.C])
def ops_of(request: pytest.FixtureRequest) -> OpsFor:
    """dtype -> Ops of each backend in turn; one that can't be had here is skipped, and the reason printed."""
    backend: Backend = request.param
    try:
        ops_for(backend)
    except KernelsUnavailable as error:
        pytest.skip(f"no backend {backend}: {error}")
    return lambda dtype: ops_for(backend, dtype)
