"""Speculation by prompt lookup: the same tokens in fewer steps, and nothing computed that does not pay."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

import pytest

from kernels.table import Backend
from ops.demo.evaluate import MODEL_DIR, heldout_examples, prompt_ids
from tests.engine.conftest import EngineOf, Foretold
from tests.models.checkpoints import RECIPES, Shelf, random_prompts
from worker.engine import Engine, EngineConfig, FinishReason, SequenceParams
from worker.engine.pages import PagePool
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.speculation import Speculation, StepCost

PAGE = 16
PROMPTS = random_prompts((5, 40, 17, 90, 3, 33, 64, 12), seed=5)
PARAMS = [
    SequenceParams(50, temperature=(0.0, 0.7, 1.0)[at % 3], top_p=(1.0, 0.9)[at % 2], seed=at * 10**11)
    for at in range(len(PROMPTS))
]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are taken wherever there is a guess, whatever they cost: tests do not go by the clock."""
    monkeypatch.setattr(StepCost, "bar", lambda self, tokens: 0.0)
    monkeypatch.setattr(Speculation, "wants_next", lambda self: True)
    monkeypatch.setattr(Speculation, "pays", lambda self, gain, rows: True)


def texts(engine: Engine, prompts: Items[Items[int]], params: Items[SequenceParams]) -> list[list[int]]:
    """What each of them says, with the accounts checked after every step."""
    said: list[list[int]] = [[] for _ in prompts]
    for at, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        engine.add(at, prompt, own)
    while engine.has_work:
        for emission in engine.step().emissions:
            said[emission.id] += emission.token_ids
        engine.check()
    return said


@pytest.mark.parametrize("name", RECIPES)
def test_every_family_says_the_same_with_drafts_and_without(
    engine_of: EngineOf, backend: Backend, name: str, tmp_path_factory: pytest.TempPathFactory, foretold: Foretold
):
    """Greedy and seeded, in deterministic mode: the same tokens, some of them in steps that gave several."""
    directory = Shelf(tmp_path_factory.mktemp("shelf"))(name)
    shape = {"backend": backend, "deterministic": True, "max_rows": 8, "token_budget": 256}
    plain, guessing = engine_of(directory, max_drafts=0, **shape), engine_of(directory, **shape)
    expected = texts(plain, PROMPTS, PARAMS)
    foretold(PROMPTS, expected)
    assert texts(guessing, PROMPTS, PARAMS) == expected
    assert 0 < guessing.stats.accepted_tokens < guessing.stats.drafted_tokens
    assert guessing.stats.steps < plain.stats.steps
    assert (plain.stats.drafted_tokens, plain.stats.accepted_tokens) == (0, 0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_demo_model_says_the_same_with_drafts_and_without(temperature: float):
    """Held-out prompts of each kind in bf16, all at once."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    prompts = [prompt_ids(tokenizer, example.prompt, chat=True) for example in heldout_examples(3, 1)]
    params = [
        SequenceParams(60, temperature=temperature, seed=at, stop_ids=frozenset({tokenizer.eos_token_id}))
        for at in range(len(prompts))
    ]
    shape = {"deterministic": True, "threads": 1, "step_time_s": None}
    plain = Engine.from_pretrained(MODEL_DIR, max_drafts=0, **shape)
    guessing = Engine.from_pretrained(MODEL_DIR, **shape)
    assert texts(guessing, prompts, params) == texts(plain, prompts, params)
    assert guessing.stats.accepted_tokens > 0


@pytest.mark.parametrize(
    "tight",
    [{"num_pages": 14}, {"token_budget": 16}, {"max_rows": 3, "page_size": 32}, {"prefix_cache": False}],
    ids=["preempted", "cut up", "few rows", "no prefix cache"],
)
def test_drafts_change_no_token_whatever_else_happens(engine_of: EngineOf, foretold: Foretold, tight: dict[str, int]):
    """Too few pages, prompts in chunks, rows that are waited for: the same tokens."""
    shape = {"deterministic": True, "max_rows": 8, "token_budget": 64, **tight}
    plain, guessing = engine_of(max_drafts=0, **shape), engine_of(**shape)
    expected = texts(plain, PROMPTS, PARAMS)
    foretold(PROMPTS, expected)
    assert texts(guessing, PROMPTS, PARAMS) == expected
    assert guessing.stats.accepted_tokens > 0
    assert (guessing.stats.preemptions > 0) == ("num_pages" in tight)


def test_limits_stop_ids_and_min_tokens_hold_within_what_was_guessed(engine_of: EngineOf, foretold: Foretold):
    """Cut at each place of a text that drafts write: the same tokens and the same end as without drafts."""
    plain, guessing = engine_of(deterministic=True, max_drafts=0), engine_of(deterministic=True)
    (text,) = texts(plain, PROMPTS[:1], PARAMS[:1])
    ends = [
        *(SequenceParams(limit) for limit in range(1, 41, 3)),
        *(SequenceParams(50, stop_ids=frozenset({token})) for token in set(text)),
        *(SequenceParams(50, min_tokens=least, stop_ids=frozenset(text[:9])) for least in range(0, 50, 7)),
    ]
    prompts = [PROMPTS[0]] * len(ends)
    expected = plain.generate(prompts, ends)
    foretold(prompts, [[*one.token_ids, *text[len(one.token_ids) :]] for one in expected])
    got = guessing.generate(prompts, ends)
    assert got == expected
    assert {one.finish_reason for one in got} == {FinishReason.STOP, FinishReason.LENGTH}
    assert guessing.stats.accepted_tokens > 0


def test_a_text_goes_on_where_another_engine_left_it(engine_of: EngineOf, foretold: Foretold):
    """Taken over after any number of tokens, it says what it would have said."""
    expected = texts(engine_of(deterministic=True, max_drafts=0), PROMPTS, PARAMS)
    foretold(PROMPTS, expected)
    engine = engine_of(deterministic=True)
    for at, (prompt, own) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        engine.add(at, prompt, own, output=expected[at][: 6 * at])
    said = {at: expected[at][: 6 * at] for at in range(len(PROMPTS))}
    while engine.has_work:
        for emission in engine.step().emissions:
            said[emission.id] += emission.token_ids
    assert list(said.values()) == expected
    assert engine.stats.accepted_tokens > 0


def test_pages_with_drafts_that_did_not_hold_are_found_by_nobody(engine_of: EngineOf, foretold: Foretold):
    """What follows a text from the prefix cache is what follows it without a cache."""
    cached, plain = engine_of(deterministic=True), engine_of(deterministic=True, max_drafts=0, prefix_cache=False)
    params = [
        replace(own, max_tokens=34 + (1 - len(prompt) - 33) % PAGE)  # a page is full with the last token but one
        for prompt, own in zip(PROMPTS, PARAMS, strict=True)
    ]
    said = texts(plain, PROMPTS, params)
    foretold(PROMPTS, said)
    assert texts(cached, PROMPTS, params) == said
    assert cached.stats.drafted_tokens > cached.stats.accepted_tokens > 0
    longer = [[*prompt, *text] for prompt, text in zip(PROMPTS, said, strict=True)]
    before, expected = cached.stats.cached_tokens, texts(plain, longer, PARAMS)
    foretold(longer, expected)
    assert texts(cached, longer, PARAMS) == expected
    written = sum((len(whole) - 1) // PAGE * PAGE for whole in longer)
    assert cached.stats.cached_tokens - before == written  # all full pages were there, those of outputs too


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("free", "drafted"), [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_a_guess_takes_no_page_that_a_running_sequence_could_need_next(free: int, drafted: int):
    """Two rows whose page is full with the next token: guesses take what is free beyond a page for each."""
    config = EngineConfig(max_rows=2, token_budget=64, page_size=PAGE, watermark=0.0)
    scheduler = Scheduler(config, PagePool(2 + free, PAGE), speculation=Speculation(16))
    for at in range(2):
        scheduler.add(Sequence(at, [1, 2, 3] * (PAGE // 3), SequenceParams(PAGE), 0, at))
    scheduler.launched(scheduler.plan())
    for sequence in scheduler.running:
        sequence.output.append(1)
        scheduler.drew(sequence, [1])
    assert sum(map(bool, scheduler.plan().drafts.values())) == drafted
    scheduler.check()


def test_drafts_end_where_the_text_may(engine_of: EngineOf, foretold: Foretold):
    """A text up to the longest that is allowed, known to the end and beyond: none is guessed behind its last token."""
    prompt, params = PROMPTS[1], SequenceParams(60)
    (text,) = texts(engine_of(max_drafts=0), [prompt], [replace(params, max_tokens=90)])
    foretold([prompt], [text])
    engine = engine_of(max_len=len(prompt) + 60, deterministic=True)
    assert texts(engine, [prompt], [params]) == [text[:60]]
    assert engine.stats.accepted_tokens > 0


def test_a_step_with_drafts_stays_within_the_token_budget(engine_of: EngineOf, foretold: Foretold):
    """Drafts take what decodes and prompts leave of it."""
    foretold(PROMPTS, texts(engine_of(max_drafts=0), PROMPTS, PARAMS))
    engine = engine_of(max_rows=8, token_budget=16)
    for at, (prompt, own) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        engine.add(at, prompt, own)
    while engine.has_work:
        assert engine.step().tokens <= 16
    assert engine.stats.drafted_tokens > 0


def test_a_guess_goes_on_where_the_last_two_tokens_stood_before():
    """The latest place counts, and a text that repeats itself goes on repeating."""
    look = Speculation(8).look_up
    assert look([1, 2, 3, 4, 1, 2]).drafts(2, 0.0)[0] == [3, 4]
    assert look([1, 2, 3, 1, 2, 4, 1, 2]).drafts(2, 0.0)[0] == [4, 1]
    assert look([7, 1, 2, 1, 2]).drafts(5, 0.0)[0] == [1, 2, 1, 2, 1]
    assert look([5, 5, 5]).drafts(3, 0.0)[0] == [5, 5, 5]
    assert look([1, 2, 3, 4]).drafts(3, 0.0)[0] == []
    assert look([1, 2]).chance == 0.0


def test_a_guess_follows_what_is_said():
    """It goes on while it is right, and looks anew where it is wrong."""
    lookup = Speculation(8).look_up([1, 2, 3, 4, 5, 9, 1])
    assert lookup.chance == 0.0
    for token, expected in ((2, [3, 4]), (3, [4, 5]), (8, []), (9, []), (1, [2, 3]), (7, [])):
        lookup.saw(token)
        assert lookup.drafts(2, 0.0)[0] == expected


def test_guesses_that_fail_are_no_longer_drafted_and_those_that_hold_are():
    """The same place guessed wrong again and again is left alone, and taken again once it is right again."""
    lookup = Speculation(8).look_up([1, 2, 3])
    for other in range(10, 40):
        for token in (1, 2, other):
            lookup.saw(token)
    lookup.saw(1), lookup.saw(2)
    assert lookup.chance > 0.0
    assert lookup.drafts(8, 0.3)[0] == []
    for _ in range(40):
        for token in (50, 51, 52, 53):
            lookup.saw(token)
    assert lookup.drafts(4, 0.8)[0] == [50, 51, 52, 53]


def test_what_one_sequence_learned_the_next_begins_with():
    """How often guesses are right is known of the engine's sequences together."""
    speculation = Speculation(8)
    fresh = speculation.look_up([1, 2, 3, 1, 2])
    assert len(fresh.drafts(8, 0.3)[0]) in range(1, 8)
    for other in range(10, 200):
        lookup = speculation.look_up([1, 2, 3, 1, 2])
        lookup.saw(other)
        speculation.learn(lookup)
    assert speculation.look_up([1, 2, 3, 1, 2]).drafts(8, 0.3)[0] == []


@pytest.mark.parametrize(
    ("step_ms", "rows", "expected"),
    [
        (lambda tokens: 20.0 + 0.1 * tokens, 1, 0.05),
        (lambda tokens: 20.0 + 0.1 * tokens, 64, 6.4 / 26.4),
        (lambda tokens: 2.0 * tokens, 64, 1.0),
    ],
    ids=["little beside reading the weights", "more where many share them", "all of it"],
)
def test_the_bar_is_what_a_token_more_takes_of_what_a_token_takes(step_ms, rows: int, expected: float):
    """From steps of several sizes; the oldest count least."""
    cost = StepCost()
    for _ in range(100):
        for tokens in (rows, rows + 5, rows + 9):
            cost.took(tokens, step_ms(tokens) / 1000)
    assert cost.bar(rows) == pytest.approx(expected, rel=1e-6)


def test_without_steps_of_several_sizes_a_draft_needs_an_even_chance():
    """Nothing measured, or all steps alike."""
    cost = StepCost()
    assert cost.bar(1) == 0.5
    for _ in range(50):
        cost.took(64, 0.01)
    assert cost.bar(64) == 0.5


def test_a_pause_in_one_step_moves_the_bar_little():
    """A step in which the machine did something else tells nothing of what a token takes."""
    cost = StepCost()
    for _ in range(30):
        for tokens in (8, 20, 40):
            cost.took(tokens, 0.020 + 0.001 * tokens)
    before = cost.bar(8)
    for tokens in (8, 40):
        cost.took(tokens, 10.0)
        assert cost.bar(8) == pytest.approx(before, rel=0.5)


def test_steps_that_are_faster_with_more_tokens_tell_nothing():
    """It is noise: no draft is taken for free because of it."""
    cost = StepCost()
    for tokens in (8, 16, 8, 24, 8, 32):
        cost.took(tokens, 0.03 - 0.0005 * tokens)
    assert cost.bar(8) == 0.5


def test_a_step_has_drafts_where_they_gain_more_than_having_any_takes():
    """Of one row little is enough; beside many rows that decode one poor guess is not worth it."""
    speculation = Speculation(8)
    assert speculation.pays(0.2, 1)
    assert not speculation.pays(0.2, 64)
    assert speculation.pays(8.0, 64)
    assert not speculation.pays(0.0, 1)


def test_where_lookups_are_of_no_use_most_sequences_go_without():
    """Every eighth still has one, and all of them again once these find something."""
    speculation = Speculation(8)
    for other in range(100):
        lookup = speculation.look_up([1, 2, 3])
        for token in range(100 * other + 10, 100 * other + 40):
            lookup.saw(token)
        speculation.learn(lookup)
    assert sum(speculation.wants_next() for _ in range(80)) == 10
    lookup = speculation.look_up([1, 2, 3])
    for token in [4, 5, 6, 7, 8, 9, 1, 2, 3] * 9:
        lookup.saw(token)
    speculation.learn(lookup)
    assert all(speculation.wants_next() for _ in range(80))
