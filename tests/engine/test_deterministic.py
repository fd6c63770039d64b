"""Deterministic mode: a text is the same to the bit of its logits, whoever shares the batch and whatever happens."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.linear import can_pack
from kernels.table import Backend
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import random_prompts
from tests.models.recorded import RecordedEngine
from worker.engine import SequenceParams

PROMPTS = random_prompts((1, 70, 16, 33, 5, 120, 2, 48), seed=9)
PARAMS = {
    id_: SequenceParams(40, temperature=(0.0, 1.0, 0.7)[id_ % 3], top_p=(1.0, 0.9)[id_ % 2], seed=id_ * 10**11)
    for id_ in range(len(PROMPTS))
}

DTYPES = pytest.mark.parametrize(
    ("dtype", "narrow"),
    [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "int8")],
    ids=["float32", "bfloat16", "bfloat16, int8 pages and weights"],
)


@pytest.fixture
def fixed(engine_of: EngineOf, backend: Backend, dtype: str, narrow: str) -> Callable[..., RecordedEngine]:
    """fixed(**settings): a deterministic engine on each backend and dtype."""
    if not can_pack(torch.device("cpu"), getattr(torch, dtype)):
        pytest.skip(f"no deterministic {dtype} on this CPU")

    def make(**more: object) -> RecordedEngine:
        shape = {"max_rows": 8, "token_budget": 64}
        how = {"backend": backend, "dtype": dtype, "kv_dtype": narrow, "weights": narrow, "deterministic": True}
        return RecordedEngine(engine_of(**{**how, **shape, **more}))

    return make


def assert_same(ran: RecordedEngine, expected: Mapping[int, tuple[list[int], list[Tensor]]]) -> None:
    """Tokens, and the bits of the logits that each was drawn from."""
    for id_, (text, logits) in expected.items():
        assert ran.tokens[id_] == text
        mine = ran.logits[id_]
        assert all(torch.equal(a, b) for a, b in zip(mine, logits[len(logits) - len(mine) :], strict=True))


def alone(fixed: Callable[..., RecordedEngine]) -> dict[int, tuple[list[int], list[Tensor]]]:
    """Each text with the engine to itself."""
    ran = fixed()
    for id_, prompt in enumerate(PROMPTS):
        ran.run({id_: prompt}, PARAMS[id_])
    assert max(len(batch.seq_lens) for batch in ran.batches) == 1
    return {id_: (ran.tokens[id_], ran.logits[id_]) for id_ in PARAMS}


@DTYPES
def test_a_text_is_the_same_alone_in_company_cut_up_preempted_and_resumed(fixed: Callable[..., RecordedEngine]):
    """Greedy and sampled, prompts of 1 to 120 tokens: the same tokens from the same bits of logits."""
    expected = alone(fixed)
    prompts = dict(enumerate(PROMPTS))

    together = fixed()
    together.run(prompts, PARAMS)
    assert max(len(batch.seq_lens) for batch in together.batches) == len(PROMPTS)
    assert_same(together, expected)

    cut_up = fixed(token_budget=16)
    cut_up.run(prompts, PARAMS)
    assert_same(cut_up, expected)

    tight = fixed(num_pages=16)
    tight.run(prompts, PARAMS)
    assert tight.engine.stats.preemptions > 0
    assert_same(tight, expected)

    paged_otherwise = fixed(page_size=32, max_rows=3)
    paged_otherwise.run(prompts, PARAMS)
    assert_same(paged_otherwise, expected)

    taken_over = fixed()
    for id_, prompt in prompts.items():
        taken_over.add(id_, prompt, PARAMS[id_], output=expected[id_][0][: 5 * id_])
    while taken_over.engine.has_work:
        taken_over.step()
    assert_same(taken_over, expected)


@DTYPES
def test_the_number_of_threads_changes_no_bit(fixed: Callable[..., RecordedEngine]):
    """Two threads, together and alone, as one thread."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    short = {id_: replace(params, max_tokens=4) for id_, params in PARAMS.items()}
    one, two, lone = fixed(), fixed(), fixed()
    one.run(dict(enumerate(PROMPTS)), short)
    torch.set_num_threads(2)
    two.run(dict(enumerate(PROMPTS)), short)
    assert_same(two, {id_: (one.tokens[id_], one.logits[id_]) for id_ in PARAMS})
    lone.run({1: PROMPTS[1]}, short[1])
    assert_same(lone, {1: (one.tokens[1], one.logits[1])})


def test_without_deterministic_mode_such_bits_do_differ(engine_of: EngineOf):
    """What the tests above compare can differ: in the torch backend's fast order, cutting prompts up moves bits."""
    ran, cut_up = (
        RecordedEngine(engine_of(backend=Backend.TORCH, max_rows=8, token_budget=budget)) for budget in (64, 16)
    )
    for one in (ran, cut_up):
        one.run(dict(enumerate(PROMPTS)), PARAMS)
    pairs = [(a, b) for id_ in PARAMS for a, b in zip(ran.logits[id_], cut_up.logits[id_], strict=True)]
    assert not all(torch.equal(a, b) for a, b in pairs)


class Traffic:
    """Sequences that come, are cancelled, or are handed to another engine in mid-text, at random."""

    PAGES = 10

    def __init__(
        self, engine_of: EngineOf, params: Mapping[int, SequenceParams], expected: Mapping[int, list[int]]
    ) -> None:
        self._engine_of, self._params, self._expected = engine_of, params, expected
        self.here: dict[int, list[int]] = {}
        self.ended = self.preemptions = 0
        self.start()

    def start(self) -> None:
        """A new engine, with what the one before it had."""
        self.engine = self._engine_of(deterministic=True, max_rows=4, token_budget=24, num_pages=self.PAGES)
        for id_, text in self.here.items():
            self.engine.add(id_, PROMPTS[id_], self._params[id_], output=text, priority=id_ % 2)

    def take_over(self) -> None:
        self.preemptions += self.engine.stats.preemptions
        self.start()

    def add(self, id_: int) -> None:
        if id_ not in self.here:
            self.here[id_] = []
            self.engine.add(id_, PROMPTS[id_], self._params[id_], priority=id_ % 2)

    def cancel(self, id_: int) -> None:
        self.engine.cancel(id_)
        self.here.pop(id_, None)

    def step(self) -> None:
        for emission in self.engine.step().emissions:
            self.here[emission.id] += emission.token_ids
            if emission.reason is not None:
                assert self.here.pop(emission.id) == self._expected[emission.id]
                self.ended += 1


def test_in_any_traffic_every_text_is_the_one_it_is_alone(engine_of: EngineOf):
    """Twelve random schedules in too small a pool: after each step the accounts add up, and every text is right."""
    params = {id_: replace(own, max_tokens=20) for id_, own in PARAMS.items()}
    lone = engine_of(deterministic=True)
    expected = {id_: lone.generate([prompt], params[id_])[0].token_ids for id_, prompt in enumerate(PROMPTS)}
    ended = preemptions = 0
    for seed in range(12):
        chance, traffic = random.Random(seed), Traffic(engine_of, params, expected)
        for _ in range(120):
            id_ = chance.randrange(len(PROMPTS))
            (action,) = chance.choices(["step", "add", "cancel", "take over"], [12, 6, 1, 1])
            match action:
                case "step":
                    traffic.step()
                case "add":
                    traffic.add(id_)
                case "cancel":
                    traffic.cancel(id_)
                case "take over":
                    traffic.take_over()
            traffic.engine.check()
        while traffic.engine.has_work:
            traffic.step()
            traffic.engine.check()
        assert not traffic.here
        assert traffic.engine.num_free_pages == Traffic.PAGES
        traffic.take_over()
        ended, preemptions = ended + traffic.ended, preemptions + traffic.preemptions
    assert ended > 100
    assert preemptions > 20
