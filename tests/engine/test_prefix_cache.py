"""The prefix cache in the engine: what is found there, what is not, and that no token changes by it."""

from __future__ import annotations

import pytest

from tests.engine.conftest import EngineOf
from tests.models.checkpoints import random_prompts
from tests.models.recorded import RecordedEngine
from worker.engine import Engine, SequenceParams

SYSTEM, *QUESTIONS = random_prompts((100, 5, 40, 17, 28), seed=3)
PROMPTS = [SYSTEM + question for question in QUESTIONS]


def cached(engine: Engine, prompt: list[int], max_tokens: int = 1, output: list[int] | None = None) -> int:
    """Run it to its end; how many tokens of its prompt were found."""
    engine.add(0, prompt, SequenceParams(max_tokens), output=output or [])
    first, *_ = engine._run_all()
    engine.check()
    return first.cached_tokens


def test_a_shared_beginning_is_computed_once(engine_of: EngineOf):
    """The second job with the same 100 tokens in front finds the six full pages of them; the counters say so."""
    engine = engine_of()
    assert cached(engine, PROMPTS[0]) == 0
    computed = engine.stats.computed_tokens
    assert cached(engine, PROMPTS[1]) == 96
    assert engine.stats.computed_tokens - computed == len(PROMPTS[1]) - 96
    assert (engine.load()["cached_tokens"], engine.load()["admitted_tokens"]) == (96, 104 + 139)


@pytest.mark.parametrize(("length", "found"), [(15, 0), (16, 0), (17, 16), (48, 32), (49, 48)])
def test_the_last_token_of_a_prompt_is_always_computed(engine_of: EngineOf, length: int, found: int):
    """Its logits are wanted, also where the whole prompt is there."""
    engine = engine_of()
    cached(engine, SYSTEM[:length])
    assert cached(engine, SYSTEM[:length]) == found


def test_a_page_is_found_once_its_step_is_done_and_not_before(engine_of: EngineOf):
    """Two alike in one step compute both; the third, a step later, computes its last page alone."""
    engine = engine_of(token_budget=512)
    for id_ in range(2):
        engine.add(id_, PROMPTS[0], SequenceParams(5))
    assert engine.step().tokens == 2 * len(PROMPTS[0])
    engine.add(2, PROMPTS[0], SequenceParams(5))
    assert engine.step().tokens == 2 + len(PROMPTS[0]) - 96
    engine.check()


def test_what_a_job_wrote_is_found_by_the_one_that_goes_on_from_it(engine_of: EngineOf):
    """The next turn of a conversation, or the same job taken over: prompt and output are found alike."""
    engine = engine_of()
    engine.add(0, PROMPTS[1], SequenceParams(40))
    written = [token for emission in engine._run_all() for token in emission.token_ids]
    turn = [*PROMPTS[1], *written, *QUESTIONS[0]]
    assert cached(engine, turn) == (140 + 39) // 16 * 16
    taken_over = engine_of()
    cached(taken_over, PROMPTS[1], 40)
    before = taken_over.stats.computed_tokens
    taken_over.add(0, PROMPTS[1], SequenceParams(40), output=written[:30])
    assert [token for emission in taken_over._run_all() for token in emission.token_ids] == written[30:]
    assert taken_over.stats.computed_tokens - before == 170 - (170 - 1) // 16 * 16 + 9


def test_a_preempted_job_finds_again_what_nobody_needed(engine_of: EngineOf):
    """In too small a pool, less is computed twice with the cache than without, and the texts are the same."""
    prompts = random_prompts([20] * 8)
    texts, recomputed = [], []
    for prefix_cache in (True, False):
        engine = engine_of(max_rows=8, num_pages=14, prefix_cache=prefix_cache, deterministic=True)
        texts.append(engine.generate(prompts, SequenceParams(60)))
        engine.check()
        recomputed.append(engine.stats.recomputed_tokens)
        assert engine.stats.preemptions > 0
    assert texts[0] == texts[1]
    assert 0 < recomputed[0] < recomputed[1]


def test_without_the_cache_nothing_is_found(engine_of: EngineOf):
    """As the setting says."""
    engine = engine_of(prefix_cache=False)
    assert [cached(engine, PROMPTS[0]) for _ in range(2)] == [0, 0]
    assert engine.stats.cached_tokens == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_deterministic_mode_no_bit_changes_by_it(engine_of: EngineOf, backend: str, dtype: str):
    """Tokens and logits with the cache, cold and warm and in a small pool, are those without it, to the bit."""
    params = {id_: SequenceParams(12, temperature=id_ % 2 * 0.8, seed=id_) for id_ in range(len(PROMPTS))}

    def ran(**settings: object) -> RecordedEngine:
        common = {"backend": backend, "dtype": dtype, "deterministic": True, "max_rows": 3, "token_budget": 48}
        recorded = RecordedEngine(engine_of(**common, **settings))
        recorded.run(dict(enumerate(PROMPTS)), params)
        return recorded

    plain, warm, small = ran(prefix_cache=False), ran(), ran(num_pages=24)
    warm.run(dict(enumerate(PROMPTS)), params)
    assert warm.engine.stats.cached_tokens > small.engine.stats.cached_tokens > 0
    for recorded in (warm, small):
        assert recorded.tokens == plain.tokens
        for id_ in params:
            assert all(a.equal(b) for a, b in zip(recorded.logits[id_], plain.logits[id_], strict=True))
