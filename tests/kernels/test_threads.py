"""The threads of the C kernels: work is done whole, whoever asks for it and wherever."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels.table import Backend, Ops
from tests.kernels.backends import ops_or_skip


@pytest.fixture
def ops() -> Ops:
    """The C kernels for fp32."""
    return ops_or_skip(Backend.C)


def much(seed: int) -> torch.Tensor:
    """Rows enough to be shared."""
    return torch.randn(300, 512, generator=torch.Generator().manual_seed(seed))


def test_a_process_that_was_forked_works_on(ops: Ops):
    """It has none of its parent's threads, and needs none: it ends with the same result."""
    torch.set_num_threads(2)
    x = much(0)
    expected = ops.silu_mul(x).numpy().tobytes()  # torch's own threads do not survive a fork
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(
                writer, b"same" if all(ops.silu_mul(x).numpy().tobytes() == expected for _ in range(50)) else b"else"
            )
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"same"
    os.waitpid(child, 0)
    assert ops.silu_mul(x).numpy().tobytes() == expected


def test_two_threads_may_ask_at_once(ops: Ops):
    """Helpers do one job at a time; who comes while they are at it does its own alone."""
    expected = [ops.silu_mul(much(seed)) for seed in range(2)]

    def ask(seed: int) -> bool:
        torch.set_num_threads(2)
        x = much(seed)
        return all(torch.equal(ops.silu_mul(x), expected[seed]) for _ in range(300))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, range(2)))
