"""A step for which memory runs out: the youngest makes way, steps become smaller, and every text is what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.prepare_batch import FlatBatch
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import random_prompts
from worker.engine import Engine, FinishReason, SequenceParams

PROMPTS = random_prompts((5, 40, 17, 90, 3, 33))
PARAMS = [SequenceParams(20, temperature=0.7, seed=seed) for seed in range(6)]
WAYS: list[dict[str, Any]] = [{}, {"device_rows": True}, {"ahead": True}]


def limited(engine: Engine, tokens: int) -> None:
    """Let the engine's memory run out in steps of more than so many tokens, padding included."""
    forward = engine._decoder.forward

    def limited_forward(batch: FlatBatch, kv: torch.Tensor, **out: torch.Tensor | None) -> torch.Tensor:
        if len(batch.input_ids) > tokens:
            raise torch.OutOfMemoryError("as if")
        return forward(batch, kv, **out)

    engine._decoder.forward = limited_forward  # type: ignore[method-assign]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_when_memory_runs_out_work_is_shed_and_goes_on(engine_of: EngineOf, way: dict[str, Any]):
    """Steps of 64 tokens turn out to be too much, half of that is not: the same tokens, a little later."""
    engine = engine_of(max_rows=6, token_budget=64, **way)
    expected = engine_of(max_rows=6, token_budget=64).generate(PROMPTS, PARAMS)
    limited(engine, 40)
    assert engine.generate(PROMPTS, PARAMS) == expected
    engine.check()
    assert engine.stats.ran_out_of_memory > 0
    assert engine.stats.preemptions > 0
    assert engine.load()["ran_out_of_memory"] == engine.stats.ran_out_of_memory


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_sequence_that_no_step_is_small_enough_for_fails_alone(engine_of: EngineOf, way: dict[str, Any]):
    """Where even its least step is too much it ends with an error, and the engine takes the next."""
    engine = engine_of(max_rows=4, token_budget=64, **way)
    forward = engine._decoder.forward
    limited(engine, 0)
    (failed,) = engine.generate([PROMPTS[1]], SequenceParams(5))
    assert (failed.token_ids, failed.finish_reason) == ([], FinishReason.FAILED)
    assert failed.error == "memory ran out in a step of this sequence alone, at token 0 of 40"
    engine._decoder.forward = forward  # type: ignore[method-assign]
    assert engine.generate([PROMPTS[0]], PARAMS[0]) == engine_of().generate([PROMPTS[0]], PARAMS[0])
