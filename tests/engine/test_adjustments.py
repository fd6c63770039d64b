"""Bias, allowed tokens, penalties, bad words and log-probabilities: as one computes them by hand, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kernels.sample import sample_torch
from kernels.table import Backend
from tests.engine.conftest import EngineOf, Foretold
from tests.models.checkpoints import VOCAB, load, random_prompts, reference_logits
from worker.engine import Completion, Engine, SequenceParams, Unservable

PROMPTS = random_prompts((5, 40, 17, 70, 3, 33, 9, 21), seed=3)
STOPS = frozenset(range(0, VOCAB, 3))
ASKING = [
    SequenceParams(24, repetition_penalty=1.7),
    SequenceParams(24, frequency_penalty=1.1, presence_penalty=-0.4, logprobs=3),
    SequenceParams(24, logit_bias=((7, 4.0), (9, -100.0), (200, 100.0)), presence_penalty=2.0),
    SequenceParams(24, allowed_token_ids=tuple(range(40, 90)), logprobs=20),
    SequenceParams(24, temperature=1.1, seed=5, bad_words=((1,), (2, 3), (4, 5, 6)), frequency_penalty=-0.5),
    SequenceParams(24, temperature=0.8, top_k=30, top_p=0.9, seed=6, repetition_penalty=0.6, logprobs=0),
    SequenceParams(24, logprobs=5, min_tokens=9, stop_ids=STOPS),
    SequenceParams(24, temperature=1.0, seed=8, allowed_token_ids=tuple(range(100)), bad_words=((5,), (8, 8)),
        logit_bias=((8, 6.0),), repetition_penalty=1.2, presence_penalty=0.3, min_tokens=12, stop_ids=STOPS,
        logprobs=2),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(model: Path) -> PreTrainedModel:
    return load(model)


def by_hand(logits: Tensor, prompt: Items[int], output: Items[int], params: SequenceParams) -> Tensor:
    """[V] fp32: one place's logits, adjusted by the definitions, a token at a time."""
    adjusted = logits.tolist()
    for token, value in params.logit_bias:
        adjusted[token] += value
    for token in range(VOCAB):
        if token in prompt or token in output:
            x = adjusted[token]
            adjusted[token] = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        adjusted[token] -= params.frequency_penalty * output.count(token)
        adjusted[token] -= params.presence_penalty if token in output else 0.0
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            adjusted[token] = float("-inf")
        if token in params.stop_ids and len(output) < params.min_tokens:
            adjusted[token] = float("-inf")
    for *before, last in params.bad_words:
        if list(output[len(output) - len(before) :]) == before:
            adjusted[last] = float("-inf")
    return torch.tensor(adjusted)


def drawn_by_hand(logits: Tensor, at: int, params: SequenceParams) -> int:
    """The token that the sampling of kernels/sample.py draws at a place."""
    values = (params.temperature, params.top_k, params.top_p, params.min_p, params.seed, at)
    dtypes = (torch.float32, torch.int64, torch.float32, torch.float32, torch.int64, torch.int64)
    one = [torch.tensor([value], dtype=dtype) for value, dtype in zip(values, dtypes, strict=True)]
    return int(sample_torch(logits.unsqueeze(0), *one))


def assert_by_hand(reference: PreTrainedModel, prompt: list[int], params: SequenceParams, said: Completion) -> None:
    """Every token, and where they are asked for the log-probabilities of `transformers`' own logits."""
    assert said.error is None
    logits = reference_logits(reference, [*prompt, *said.token_ids])[len(prompt) - 1 : -1]
    for at, (place, token) in enumerate(zip(logits, said.token_ids, strict=True)):
        assert token == drawn_by_hand(by_hand(place, prompt, said.token_ids[:at], params), at, params), f"token {at}"
    if params.logprobs is None:
        assert said.logprobs is None
        return
    assert said.logprobs is not None
    expected = logits.log_softmax(-1)
    for place, token, (own, top, values) in zip(expected, said.token_ids, said.logprobs, strict=True):
        likeliest = place.topk(params.logprobs)
        assert own == pytest.approx(float(place[token]), abs=1e-4)
        assert values == pytest.approx(likeliest.values.tolist(), abs=1e-4)
        assert top == likeliest.indices.tolist()


def test_every_token_and_its_log_probability_are_those_computed_by_hand(
    engine_of: EngineOf, backend: Backend, reference: PreTrainedModel
):
    """Over `transformers`' logits in fp32: each adjustment alone and several together, all side by side."""
    said = engine_of(backend=backend, max_rows=8).generate(PROMPTS, ASKING)
    for prompt, params, completion in zip(PROMPTS, ASKING, said, strict=True):
        assert_by_hand(reference, prompt, params, completion)
    plain = engine_of(backend=backend, max_rows=8).generate(PROMPTS, SequenceParams(24))
    assert all(one.token_ids != other.token_ids for one, other in zip(said[:6], plain[:6], strict=True))


def test_neighbours_that_ask_for_something_change_nobodys_tokens(engine_of: EngineOf, backend: Backend):
    """Plain rows beside them say what they say alone, and theirs are the same in a batch of them only."""
    engine = engine_of(backend=backend, max_rows=16, deterministic=True)
    plain = [SequenceParams(24, temperature=at % 2, seed=at) for at in range(8)]
    apart = [*engine.generate(PROMPTS, plain), *engine.generate(PROMPTS, ASKING)]
    assert engine.generate([*PROMPTS, *PROMPTS], [*plain, *ASKING]) == apart


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "tight",
    [{"token_budget": 16}, {"num_pages": 12}, {"max_rows": 3, "page_size": 32}],
    ids=["cut up", "preempted", "few rows"],
)
def test_in_deterministic_mode_tokens_and_log_probabilities_are_the_same_to_the_bit(
    engine_of: EngineOf, backend: Backend, dtype: str, tight: dict[str, int]
):
    """Alone, and in company in chunks, with too few pages, and through seats that others had."""
    shape: dict[str, Any] = {"backend": backend, "dtype": dtype, "deterministic": True, "max_rows": 8}
    lone, engine = engine_of(**shape), engine_of(**{**shape, **tight})
    expected = [lone.generate([prompt], params)[0] for prompt, params in zip(PROMPTS, ASKING, strict=True)]
    assert engine.generate(PROMPTS, ASKING) == expected
    assert (engine.stats.preemptions > 0) == ("num_pages" in tight)


def test_another_engine_goes_on_as_the_first_would_have(engine_of: EngineOf, backend: Backend):
    """Taken over after any number of tokens: what counts for penalties and bad words is rebuilt from the ids."""
    engine = engine_of(backend=backend, deterministic=True, max_rows=8)
    expected = engine.generate(PROMPTS, ASKING)
    held = [min(2 * at, len(one.token_ids) - 1) for at, one in enumerate(expected)]  # short of the end
    for at, (prompt, params) in enumerate(zip(PROMPTS, ASKING, strict=True)):
        engine.add(at, prompt, params, output=expected[at].token_ids[: held[at]])
    said = {
        at: (list(one.token_ids[: held[at]]), list((one.logprobs or ())[: held[at]])) for at, one in enumerate(expected)
    }
    while engine.has_work:
        for emission in engine.step().emissions:
            said[emission.id][0].extend(emission.token_ids)
            said[emission.id][1].extend(emission.logprobs or ())
    assert [said[at] for at in range(8)] == [(one.token_ids, one.logprobs or []) for one in expected]


def test_drafts_change_neither_tokens_nor_log_probabilities(engine_of: EngineOf, foretold: Foretold):
    """Each place behind a draft is adjusted by what stands before it; what penalises has no drafts."""
    plain, guessing = (engine_of(deterministic=True, max_rows=8, max_drafts=drafts) for drafts in (0, 16))
    params = [replace(own, frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0) for own in ASKING]
    expected = plain.generate(PROMPTS, params)
    foretold(PROMPTS, [one.token_ids for one in expected])
    assert guessing.generate(PROMPTS, params) == expected
    assert guessing.stats.accepted_tokens > 0
    drafted = guessing.stats.drafted_tokens
    penalised = [replace(own, presence_penalty=0.5) for own in params]
    assert guessing.generate(PROMPTS, penalised) == plain.generate(PROMPTS, penalised)
    assert guessing.stats.drafted_tokens == drafted


def test_who_asks_for_nothing_has_nothing_told(engine_of: EngineOf):
    """No log-probabilities, and no memory for histories, as long as nobody asks."""
    engine = engine_of()
    assert all(one.logprobs is None for one in engine.generate(PROMPTS, SequenceParams(3)))
    adjustments: Any = engine._runner._adjustments  # type: ignore[attr-defined]
    assert adjustments._histories is None
    assert adjustments.of([]) is None


IMPOSSIBLE: dict[str, list[dict[str, Any]]] = {
    "repetition_penalty": [{"repetition_penalty": value} for value in (0.0, 0.005, -1.0, 2.1, float("nan"))],
    "frequency_penalty": [{"frequency_penalty": 2.5}],
    "presence_penalty": [{"presence_penalty": float("nan")}],
    "logprobs": [{"logprobs": 21}, {"logprobs": -1}],
    "logit_bias": [{"logit_bias": ((VOCAB, 1.0),)}, {"logit_bias": ((3, 1.0), (3, 2.0))}],
    "bad_words": [{"bad_words": ((1, -1),)}, {"bad_words": ((),)}],
    "allowed_token_ids": [
        {"allowed_token_ids": ()},
        {"allowed_token_ids": (1, VOCAB)},
        {"allowed_token_ids": (1, 2), "bad_words": ((1,), (2,))},
        {"allowed_token_ids": (1, 2), "bad_words": ((1,),), "min_tokens": 1, "stop_ids": frozenset({2})},
    ],
}


@pytest.mark.parametrize(("field", "more"), [(name, more) for name, each in IMPOSSIBLE.items() for more in each])
def test_what_can_not_be_is_refused_by_its_field(engine_of: EngineOf, field: str, more: dict[str, Any]):
    """Before anything is queued, in one sentence."""
    engine = engine_of()
    with pytest.raises(Unservable) as found:
        engine.add(0, [1], SequenceParams(5, **more))
    assert found.value.field == field
    assert not engine.has_work


def test_a_sequence_with_nothing_left_to_say_fails_alone(engine_of: EngineOf):
    """Two tokens allowed, and a run of both is bad: after the first of them nothing is left; its neighbour goes on."""
    never = SequenceParams(9, allowed_token_ids=(1, 2), bad_words=((1, 1), (1, 2), (2, 1), (2, 2)))
    engine: Engine = engine_of()
    stuck, other = engine.generate(PROMPTS[:2], [never, SequenceParams(9)])
    assert (len(stuck.token_ids), stuck.finish_reason) == (1, "failed")
    assert stuck.error is not None
    assert "allowed tokens and bad words left none" in stuck.error
    assert len(other.token_ids) == 9
