"""Each backend in turn, one thread, and inputs that hold NaN wherever an operation has no business."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import Phase, settings

from kernels.table import Backend, Ops, ops_for
from tests.kernels.backends import ops_or_skip

OpsFor = Callable[[torch.dtype], Ops]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(Backend))
def ops_of(request: pytest.FixtureRequest) -> OpsFor:
    """dtype -> Ops of each backend in turn; one that can't be had here is skipped, and the reason printed."""
    backend = ops_or_skip(request.param).backend
    return lambda dtype: ops_for(backend, dtype)


@pytest.fixture(params=[Backend.TORCH, Backend.C])
def cpu_ops_of(request: pytest.FixtureRequest) -> OpsFor:
    """As ops_of, of the backends that are fast enough here for thousands of rows."""
    backend = ops_or_skip(request.param).backend
    return lambda dtype: ops_for(backend, dtype)


def interpreted(ops: Ops) -> bool:
    """Whether these operations run in Triton's interpreter, a hundred times as slowly as others."""
    return ops.backend is Backend.TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def examples(ops_of: OpsFor, count: int) -> settings:
    """`count` examples; in the interpreter a quarter of them, and one that fails is not made smaller first."""
    plain = settings(max_examples=count, deadline=None, derandomize=True, database=None)
    if not interpreted(ops_of(torch.float32)):
        return plain
    return settings(plain, max_examples=-(-count // 4), phases=[Phase.generate])
