"""The engine on the Triton kernels, in Triton's interpreter where there is no GPU: the same tokens as on torch."""

from __future__ import annotations

import random

import pytest

from kernels.table import Backend
from tests.engine.conftest import EngineOf
from tests.kernels.backends import ops_or_skip
from worker.engine import SequenceParams

PROMPTS = [[random.Random(length).randrange(320) for _ in range(length)] for length in (3, 17, 40)]
PARAMS = [
    SequenceParams(max_tokens=6),
    SequenceParams(max_tokens=8, temperature=0.8, top_k=20, top_p=0.9, seed=5),
    SequenceParams(max_tokens=4, temperature=1.0, min_p=0.05, seed=6),
]


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
@pytest.mark.parametrize("ahead", [False, True], ids=["plain loop", "one step ahead"])
def test_the_engine_gives_the_same_tokens_on_the_triton_kernels(engine_of: EngineOf, deterministic: bool, ahead: bool):
    """Three sequences side by side, greedy and sampled, prompts in chunks, in fp32: every token as torch's."""
    ops_or_skip(Backend.TRITON)
    settings = {"dtype": "float32", "deterministic": deterministic, "token_budget": 24, "max_rows": 3}
    ours, theirs = (
        engine_of(backend=backend, ahead=ahead and backend is Backend.TRITON, **settings).generate(PROMPTS, PARAMS)
        for backend in (Backend.TRITON, Backend.TORCH)
    )
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
