"""A tiny model, engines on it, and each backend in turn; one thread, which is faster at this size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kernels.table import Backend
from tests.kernels.backends import ops_or_skip
from tests.models.checkpoints import VOCAB, Shelf
from worker.engine import Engine
from worker.engine.speculation import Lookup, Speculation, StepCost

transformers.utils.logging.disable_progress_bar()

EngineOf = Callable[..., Engine]
Foretold = Callable[[Items[Items[int]], Items[Items[int]]], None]


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


@pytest.fixture
def foretold(monkeypatch: pytest.MonkeyPatch) -> Foretold:
    """foretold(prompts, texts): guesses are what these prompts are known to say, with some tokens wrong.

    A random model hardly repeats itself, and drafts that hold and fail in every order are to be seen.
    """

    def know(prompts: Items[Items[int]], texts: Items[Items[int]]) -> None:
        known = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
        chance = random.Random(7)

        def drafts(lookup: Lookup, most: int, bar: float) -> tuple[list[int], float]:
            said = lookup._history
            whole = next(one for one in known if one[: len(said)] == said)
            found = whole[len(said) : len(said) + chance.randrange(most + 1)]
            return [(token + 1) % VOCAB if chance.random() < 0.2 else token for token in found], 1.0

        monkeypatch.setattr(StepCost, "bar", lambda self, tokens: -1.0)
        monkeypatch.setattr(Speculation, "wants_next", lambda self: True)
        monkeypatch.setattr(Speculation, "pays", lambda self, gain, rows: True)
        monkeypatch.setattr(Lookup, "drafts", drafts)

    return know
