"""Checkpoints to compare with `transformers` on; one thread, which is faster at this size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
import transformers
from torch import Tensor

from kernels.table import Backend, Ops, ops_for
from tests.kernels.backends import ops_or_skip
from tests.models.checkpoints import Shelf, load, reference_logits
from tests.models.direct import TEXTS, Theirs

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(params=[Backend.TORCH, Backend.C])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend in turn; one that can't be had here is skipped, and the reason printed."""
    return ops_or_skip(request.param).backend


@pytest.fixture
def ops(backend: Backend) -> Ops:
    """The backend's operations for fp32."""
    return ops_for(backend)


@pytest.fixture(scope="session")
def theirs(shelf: Shelf) -> Theirs:
    """`transformers`' logits of each of TEXTS on weights rounded to `weights`, computed in `dtype`; each once."""

    @cache
    def logits(name: str, weights: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        model = load(shelf(name, weights), dtype)
        return [reference_logits(model, text) for text in TEXTS]

    return logits
