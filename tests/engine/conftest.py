"""A tiny model, engines on it, and each backend in turn; one thread, which is faster at this size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kernels.table import Backend
from tests.kernels.backends import ops_or_skip
from tests.models.checkpoints import Shelf
from worker.engine import Engine

transformers.utils.logging.disable_progress_bar()

EngineOf = Callable[..., Engine]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a head of its own; 320 ids, 1,024 tokens long, no end of sequence."""
    return Shelf(tmp_path_factory.mktemp("shelf"))("llama, llama3 rope")


@pytest.fixture(params=[Backend.TORCH, Backend.C])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; one that can't be had here is skipped, and the reason printed."""
    return ops_or_skip(request.param).backend


@pytest.fixture(scope="session")
def engine_of(model: Path) -> EngineOf:
    """engine_of(**settings): an engine on the tiny model: pages of 16, one thread, steps not by the clock, on the CPU
    (tests/gpu has those on a GPU)."""

    def make(directory: Path = model, **settings: Any) -> Engine:
        return Engine.from_pretrained(
            directory, **{"device": "cpu", "threads": 1, "page_size": 16, "step_time_s": None, **settings}
        )

    return make
