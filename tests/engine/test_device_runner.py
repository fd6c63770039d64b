"""Rows on the device and steps that run ahead: the same tokens as the plain loop's, whatever happens between steps."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kernels.table import Backend
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import VOCAB, random_prompts
from worker.engine import Engine, FinishReason, SequenceParams
from worker.engine.step_shape import decode_sizes

PROMPTS = random_prompts((5, 40, 17, 90, 3, 33))
PARAMS = [
    SequenceParams(20),
    SequenceParams(30, temperature=0.9, seed=4),
    SequenceParams(9, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=-5),
    SequenceParams(40),
    SequenceParams(1),
    SequenceParams(12, min_tokens=5, stop_ids=frozenset(range(0, VOCAB, 40))),
]
WAYS = [{"device_rows": True}, {"ahead": True}]
SHAPE = {"max_rows": 4, "token_budget": 32}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
@pytest.mark.parametrize("num_pages", [None, 14], ids=["room enough", "pages run out"])
def test_every_token_is_the_plain_loops(
    engine_of: EngineOf, backend: Backend, way: dict[str, bool], deterministic: bool, num_pages: int | None
):
    """Greedy and sampled, in chunks, with bars on stop ids, more sequences than rows, and preemption."""
    settings = {**SHAPE, "backend": backend, "deterministic": deterministic, "num_pages": num_pages}
    plain, engine = engine_of(**settings), engine_of(**settings, **way)
    assert engine.generate(PROMPTS, PARAMS) == plain.generate(PROMPTS, PARAMS)
    engine.check()
    assert (engine.stats.preemptions > 0) == (num_pages is not None)


ASKING = [
    SequenceParams(20, repetition_penalty=1.5, logprobs=2),
    SequenceParams(30, temperature=0.9, seed=4, frequency_penalty=0.7, presence_penalty=-0.4),
    SequenceParams(9, temperature=0.8, top_k=20, seed=-5, allowed_token_ids=tuple(range(60)), logprobs=20),
    SequenceParams(25, logit_bias=((7, 9.0), (8, 9.0)), bad_words=((7,), (8, 8), (3, 4, 5)), presence_penalty=0.1),
    SequenceParams(20, min_tokens=9, stop_ids=frozenset(range(0, VOCAB, 3)), logprobs=0),
    SequenceParams(12, min_tokens=5, stop_ids=frozenset(range(0, VOCAB, 40)), frequency_penalty=2.0),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
@pytest.mark.parametrize("num_pages", [None, 14], ids=["room enough", "pages run out"])
def test_adjusted_tokens_and_log_probabilities_are_the_plain_loops(
    engine_of: EngineOf, backend: Backend, way: dict[str, bool], num_pages: int | None
):
    """Histories that only the device knows to the end: the same to the bit, beside plain neighbours and through
    preemption, in steps of decodes alone and in others."""
    settings = {**SHAPE, "backend": backend, "deterministic": True, "num_pages": num_pages}
    plain, engine = engine_of(**settings), engine_of(**settings, **way)
    prompts, params = [*PROMPTS, *PROMPTS], [*ASKING, *PARAMS]
    assert engine.generate(prompts, params) == plain.generate(prompts, params)
    engine.check()
    assert (engine.stats.preemptions > 0) == (num_pages is not None)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
def test_a_device_that_takes_over_counts_what_was_said(engine_of: EngineOf, way: dict[str, bool]):
    """Penalties and bad words go on from the output of an earlier owner."""
    expected = engine_of(deterministic=True).generate(PROMPTS, ASKING)
    engine = engine_of(deterministic=True, **way)
    said: dict[int, list[int]] = {}
    for at, (prompt, params) in enumerate(zip(PROMPTS, ASKING, strict=True)):
        said[at] = expected[at].token_ids[: 1 + at]
        engine.add(at, prompt, params, output=said[at])
    while engine.has_work:
        for emission in engine.step().emissions:
            said[emission.id] = [*said[emission.id], *emission.token_ids]
    assert list(said.values()) == [one.token_ids for one in expected]


def test_what_is_asked_for_is_brought_over_once(engine_of: EngineOf):
    """As long as the same rows ask for the same, a step brings nothing more over than it would without."""
    engine = engine_of(ahead=True, max_rows=4)
    uploads: list[int] = []
    device = engine._runner._device  # type: ignore[attr-defined]
    upload = device.upload
    device.upload = lambda values: (uploads.append(values.size), upload(values))[1]
    for at in range(3):
        engine.add(at, PROMPTS[at], ASKING[at] if at else PARAMS[0])
    for _ in range(5):
        engine.step()
    uploads.clear()
    engine.step()
    assert len(uploads) <= 1  # the step's own inputs


class Watched:
    """An engine that is fed, cancelled and stepped by hand; what each sequence got."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, FinishReason] = {}

    def add(self, id_: int, prompt: list[int], params: SequenceParams, output: tuple[int, ...] = ()) -> None:
        self.engine.add(id_, prompt, params, output=output)
        self.tokens[id_] = list(output)

    def step(self) -> None:
        for emission in self.engine.step().emissions:
            self.tokens[emission.id] += emission.token_ids
            if emission.reason is not None:
                self.reasons[emission.id] = emission.reason
        self.engine.check()

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()


@pytest.mark.parametrize("seed", range(8))
def test_arrivals_and_cancels_between_steps_change_nobodys_tokens(engine_of: EngineOf, seed: int):
    """A row or page that changes hands while a step is on its way gives nothing to its new owner, nor to the cache."""
    drawn = random.Random(seed)
    ran = Watched(engine_of(**SHAPE, ahead=True, num_pages=20))
    wanted: dict[int, tuple[list[int], SequenceParams]] = {}
    cancelled: set[int] = set()
    for id_ in range(24):
        prompt = [*PROMPTS[3][:32], *PROMPTS[drawn.randrange(6)]] if drawn.random() < 0.5 else PROMPTS[id_ % 6]
        stops = frozenset(drawn.sample(range(VOCAB), 20)) if drawn.random() < 0.5 else frozenset[int]()
        params = SequenceParams(
            drawn.randint(1, 30), temperature=drawn.choice([0.0, 1.0]), seed=id_, stop_ids=stops,
            min_tokens=0 if drawn.random() < 0.5 else 1,
        )  # fmt: skip
        wanted[id_] = prompt, params
        ran.add(id_, prompt, params)
        for _ in range(drawn.randrange(4)):
            ran.step()
        if drawn.random() < 0.3:
            gone = drawn.randrange(id_ + 1)
            if gone not in ran.reasons:
                cancelled.add(gone)
            ran.engine.cancel(gone)
    ran.finish()
    plain = engine_of(**SHAPE)
    texts = plain.generate([p for p, _ in wanted.values()], [own for _, own in wanted.values()])
    for id_, text in enumerate(texts):
        if id_ in cancelled:
            assert ran.tokens[id_] == text.token_ids[: len(ran.tokens[id_])]
        else:
            assert (ran.tokens[id_], ran.reasons[id_]) == (text.token_ids, text.finish_reason)
    assert ran.engine.num_free_pages == 20


def test_a_stop_costs_one_token_that_is_dropped_and_a_limit_costs_none(engine_of: EngineOf):
    """The step after a stop id was launched before it was read; where the limit ends a text nobody needs to read."""
    (text,) = engine_of().generate([PROMPTS[0]], SequenceParams(20))
    at = next(i for i in range(3, 20) if text.token_ids[i] not in text.token_ids[:i])

    def computed(params: SequenceParams, **way: bool) -> int:
        engine = engine_of(**way)
        engine.add(0, PROMPTS[0], params)
        launched: list[int] = []
        launch = engine._launch

        def counting() -> Any:
            flight = launch()
            launched.append(sum(flight.plan.tokens.values()) if flight else 0)
            return flight

        # counted here: what is launched and then dropped shows in no figure of the engine
        engine._launch = counting  # type: ignore[method-assign]
        while engine.has_work:
            engine.step()
        return sum(launched)

    stopped = SequenceParams(20, stop_ids=frozenset({text.token_ids[at]}))
    assert computed(stopped, ahead=True) == computed(stopped) + 1
    assert computed(SequenceParams(20), ahead=True) == computed(SequenceParams(20))


def test_a_step_is_launched_before_the_one_before_it_is_read(engine_of: EngineOf):
    """In this order: launch, launch, read, launch, read."""
    engine = engine_of(ahead=True)
    said: list[str] = []
    launch = engine._runner.launch

    def telling(*given: Any) -> Any:
        said.append("launch")
        read = launch(*given)
        return lambda: (said.append("read"), read())[1]

    engine._runner.launch = telling  # type: ignore[method-assign]
    engine.add(0, PROMPTS[0], SequenceParams(9))
    assert [len(engine.step().emissions) for _ in range(2)] == [1, 1]
    assert said == ["launch", "launch", "read", "launch", "read"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
def test_more_stop_ids_than_a_seat_holds_are_barred_all_the_same(engine_of: EngineOf, way: dict[str, bool]):
    """Half the vocabulary before min_tokens, beside one with few stop ids and one with none."""
    params = [
        SequenceParams(12, min_tokens=6, temperature=1.0, seed=3, stop_ids=frozenset(range(0, VOCAB, 2))),
        SequenceParams(12, min_tokens=6, temperature=1.0, seed=4, stop_ids=frozenset({1, 5, 9, VOCAB + 3})),
        SequenceParams(12, temperature=1.0, seed=5),
    ]
    expected = engine_of().generate(PROMPTS[:3], params)
    assert engine_of(**way).generate(PROMPTS[:3], params) == expected
    assert not set(expected[0].token_ids[:5]) & params[0].stop_ids


@pytest.mark.parametrize("max_rows", [1, 2, 16, 300])
def test_every_number_of_rows_has_a_size_of_step(max_rows: int):
    """One row is a step by itself, except where bits count; from 16 rows on padding is half of them at most."""
    for alone in (True, False):
        sizes = decode_sizes(max_rows, alone=alone)
        assert sizes == sorted(set(sizes))
        assert max_rows <= sizes[-1] < max_rows + 4
        assert (1 in sizes) == alone
        assert all(min(size for size in sizes if size >= rows) <= 1.5 * rows for rows in range(16, max_rows + 1))
