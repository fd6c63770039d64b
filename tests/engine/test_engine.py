"""Engine: add, step, cancel, generate; what ends a sequence, and what each step reports."""

from __future__ import annotations

from collections import Counter
from threading import Event
from typing import Any

import pytest
import torch

from tests.engine.conftest import EngineOf
from tests.models.checkpoints import VOCAB, random_prompts
from tests.models.recorded import RecordedEngine
from worker.engine import Completion, Engine, FinishReason, SequenceParams

PROMPTS = random_prompts((5, 40, 17, 90, 3, 33))


def greedy(engine: Engine, prompt: list[int], max_tokens: int = 20) -> list[int]:
    (completion,) = engine.generate([prompt], SequenceParams(max_tokens))
    return completion.token_ids


def test_a_freed_row_is_filled_in_the_next_step(engine_of: EngineOf):
    """Two rows, three sequences: no step runs with an empty row while one waits."""
    engine = engine_of(max_rows=2, token_budget=64)
    for id_, max_tokens in enumerate((3, 8, 5)):
        engine.add(id_, PROMPTS[0], SequenceParams(max_tokens))
    rows, ended = [], {}
    while engine.has_work:
        output = engine.step()
        rows.append(output.rows)
        ended |= {emission.id: len(rows) for emission in output.emissions if emission.reason}
    assert ended == {0: 3, 1: 8, 2: 8}
    assert rows == [2] * 8


def test_a_step_says_what_it_gave_and_how_full_it_was(engine_of: EngineOf):
    """A token for each that caught up, the rows that took part, the tokens computed."""
    engine = engine_of(max_rows=4, token_budget=32)
    engine.add(7, PROMPTS[0], SequenceParams(2))
    engine.add(8, PROMPTS[1], SequenceParams(1))
    first, second, third = engine.step(), engine.step(), engine.step()
    assert [(e.id, len(e.token_ids), e.reason) for e in first.emissions] == [(7, 1, None)]
    assert (first.rows, first.tokens, first.preempted) == (2, 5 + 27, 0)
    assert {(e.id, e.reason) for e in second.emissions} == {(7, FinishReason.LENGTH), (8, FinishReason.LENGTH)}
    assert (second.rows, second.tokens) == (2, 1 + 13)
    assert (third.emissions, third.rows, third.tokens) == ([], 0, 0)
    load = engine.load()
    assert load.pop("longest_step_ms") >= 0
    assert load == {
        "running": 0,
        "waiting": 0,
        "free_pages": engine.describe()["num_pages"],
        "steps": 2,
        "row_steps": 4,
        "computed_tokens": 46,
        "generated_tokens": 3,
        "preemptions": 0,
        "admitted_tokens": 43,
        "cached_tokens": 0,
        "recomputed_tokens": 0,
        "ran_out_of_memory": 0,
        "compiled_late": 0,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
    }


def test_a_process_that_stands_still_is_at_no_step(engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch):
    """The longest step, by which a hang is told, does not grow while this process is stopped in the midst of one."""
    engine = engine_of()
    forward = engine._decoder.forward

    def slow(*given: Any) -> Any:
        Event().wait(1.0)  # as if stopped by a signal
        return forward(*given)

    monkeypatch.setattr(engine._decoder, "forward", slow)
    engine.generate(PROMPTS[:1], SequenceParams(1))
    assert engine.stats.busy_seconds >= 1.0
    assert engine.load()["longest_step_ms"] < 1000


def test_the_lower_priority_number_runs_first(engine_of: EngineOf):
    """With one row, in the order of priority, then of arrival."""
    engine = engine_of(max_rows=1)
    for id_, priority in enumerate((2, 1, 0, 1)):
        engine.add(id_, PROMPTS[0], SequenceParams(1), priority=priority)
    assert [engine.step().emissions[0].id for _ in range(4)] == [2, 1, 3, 0]


def test_completions_come_in_the_order_of_the_prompts(engine_of: EngineOf):
    """Whichever ended first; each with its own parameters."""
    engine = engine_of(max_rows=2, token_budget=16)
    params = [SequenceParams(n) for n in (9, 1, 4, 2, 7, 3)]
    completions = engine.generate(PROMPTS, params)
    assert [len(completion.token_ids) for completion in completions] == [9, 1, 4, 2, 7, 3]
    assert completions == [
        Completion(greedy(engine, prompt, own.max_tokens), FinishReason.LENGTH)
        for prompt, own in zip(PROMPTS, params, strict=True)
    ]
    assert engine.generate([], SequenceParams(1)) == []


def test_generate_wants_parameters_for_each_prompt_or_one_for_all(engine_of: EngineOf):
    """Two for three is a mistake that is told."""
    with pytest.raises(ValueError, match="one for each of 3 prompts; got 2"):
        engine_of().generate(PROMPTS[:3], [SequenceParams(1)] * 2)


def test_generate_takes_the_engine_for_itself(engine_of: EngineOf):
    """While another sequence is here it refuses, and touches nothing."""
    engine = engine_of()
    engine.add(0, PROMPTS[0], SequenceParams(2))
    with pytest.raises(RuntimeError, match="1 sequences are here"):
        engine.generate(PROMPTS, SequenceParams(2))
    assert engine.num_waiting == 1


def test_an_interrupted_generate_leaves_nothing_behind(engine_of: EngineOf):
    """An exception in the middle: rows and pages are free, and the engine goes on."""
    engine = engine_of()
    forward = engine._decoder.forward

    def interrupted(*arguments):
        if engine.stats.steps == 2:
            raise KeyboardInterrupt
        return forward(*arguments)

    engine._decoder.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, SequenceParams(9))
    engine._decoder.forward = forward
    engine.check()
    assert not engine.has_work
    assert len(greedy(engine, PROMPTS[0])) == 20


def test_a_stop_id_ends_the_text_and_is_its_last_token(engine_of: EngineOf):
    """Where the text would have gone on."""
    engine = engine_of()
    text = greedy(engine, PROMPTS[0])
    at = next(i for i in range(3, 20) if text[i] not in text[:i])
    (completion,) = engine.generate([PROMPTS[0]], SequenceParams(20, stop_ids=frozenset({text[at], VOCAB + 5, -1})))
    assert completion == Completion(text[: at + 1], FinishReason.STOP)


def test_a_stop_id_as_the_last_token_allowed_counts_as_a_stop(engine_of: EngineOf):
    """Not as running out of tokens."""
    engine = engine_of()
    text = greedy(engine, PROMPTS[0])
    at = next(i for i in range(3, 20) if text[i] not in text[:i])
    (completion,) = engine.generate([PROMPTS[0]], SequenceParams(at + 1, stop_ids=frozenset({text[at]})))
    assert completion == Completion(text[: at + 1], FinishReason.STOP)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_before_min_tokens_no_stop_id_comes(engine_of: EngineOf, temperature: float):
    """Half the vocabulary would stop the text: none of that in the first five tokens, then the first one ends it."""
    engine = engine_of()
    stops = frozenset(range(0, VOCAB, 2)) | {VOCAB + 1, -3}
    params = [
        SequenceParams(30, min_tokens=5, temperature=temperature, seed=seed, stop_ids=stops)
        for seed in range(len(PROMPTS))
    ]
    for completion in engine.generate(PROMPTS, params):
        *before, last = completion.token_ids
        assert len(before) >= 5
        assert not stops & set(before)
        assert last in stops
        assert completion.finish_reason is FinishReason.STOP


def test_min_tokens_of_one_sequence_bar_nothing_from_its_neighbours(engine_of: EngineOf):
    """Beside one that must go on, the other ends at the same stop id as alone."""
    engine = engine_of()
    stop = frozenset({greedy(engine, PROMPTS[0])[0]})
    barred, free = engine.generate(
        [PROMPTS[0], PROMPTS[0]], [SequenceParams(9, min_tokens=9, stop_ids=stop), SequenceParams(9, stop_ids=stop)]
    )
    assert len(free.token_ids) == 1
    assert len(barred.token_ids) == 9
    assert not stop & set(barred.token_ids)


def test_a_cancelled_sequence_gives_nothing_more_and_frees_all_it_had(engine_of: EngineOf):
    """Waiting, in its prompt or decoding; and an unknown id is nobody's."""
    engine = engine_of(max_rows=2, token_budget=32)
    free = engine.num_free_pages
    for id_ in range(3):
        engine.add(id_, PROMPTS[3], SequenceParams(50))
    engine.step()
    engine.cancel(2)  # waiting
    engine.cancel(1)  # in its prompt, or about to be
    engine.cancel(99)
    engine.check()
    while not engine.step().emissions:
        pass
    engine.cancel(0)  # decoding
    engine.cancel(0)
    engine.check()
    assert not engine.has_work
    assert engine.num_free_pages == free
    assert engine.step().emissions == []


def test_an_id_can_be_used_again_once_it_is_gone(engine_of: EngineOf):
    """As for a job that comes back."""
    engine = engine_of()
    engine.add(0, PROMPTS[0], SequenceParams(5))
    engine.step()
    engine.cancel(0)
    ran = RecordedEngine(engine)
    ran.run({0: PROMPTS[0]}, SequenceParams(5))
    assert ran.tokens[0] == greedy(engine_of(), PROMPTS[0], 5)


def test_a_sequence_may_fill_the_model_and_the_pool_to_the_last_token(engine_of: EngineOf):
    """Prompt and output as long as the model allows, in a pool that holds just that."""
    engine = engine_of(num_pages=3, token_budget=64)
    assert engine.max_len == 48
    (completion,) = engine.generate([PROMPTS[1]], SequenceParams(8))
    assert len(completion.token_ids) == 8
    engine = engine_of(max_len=45, token_budget=64)
    assert len(greedy(engine, PROMPTS[1], 5)) == 5


def test_preemption_gives_the_same_tokens(engine_of: EngineOf):
    """In a pool too small for all, some start over, and every text is the one it is with room enough."""
    prompts = random_prompts([20] * 8)
    ample, tight = engine_of(max_rows=8), engine_of(max_rows=8, num_pages=14)
    expected = ample.generate(prompts, SequenceParams(60))
    assert tight.generate(prompts, SequenceParams(60)) == expected
    assert ample.stats.preemptions == 0
    assert tight.stats.preemptions > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_text_resumes_where_it_was_left(engine_of: EngineOf, temperature: float):
    """Given the tokens it already has, another engine writes the rest, wherever no two logits were nearly alike."""
    params = SequenceParams(24, temperature=temperature, seed=77)
    ran = RecordedEngine(engine_of())
    ran.run(dict(enumerate(PROMPTS[:4])), params)
    for id_, prompt in enumerate(PROMPTS[:4]):
        text = ran.tokens[id_]
        best = torch.stack(ran.logits[id_]).topk(2).values
        assert float((best[:, 0] - best[:, 1]).min()) > 1e-4, "a near-tie: take other prompts"
        for done in (1, 11, 23):
            again = RecordedEngine(engine_of(token_budget=64))
            again.add(0, prompt, params, output=text[:done])
            while again.engine.has_work:
                again.step()
            assert again.tokens[0] == text
            assert again.engine.stats.generated_tokens == 24 - done


def test_seeds_make_texts_differ_and_the_same_seed_makes_them_alike(engine_of: EngineOf):
    """Five seeds give five texts; the same five again give the same."""
    engine = engine_of()
    params = [SequenceParams(12, temperature=1.0, seed=seed) for seed in (0, 1, 2**40, -5, 2**63 - 1)]
    texts = [completion.token_ids for completion in engine.generate([PROMPTS[0]] * 5, params)]
    assert max(Counter(map(tuple, texts)).values()) == 1
    assert [completion.token_ids for completion in engine.generate([PROMPTS[0]] * 5, params)] == texts


def test_the_engine_describes_itself(engine_of: EngineOf, backend: str):
    """As resolved: the backend that runs, its dtype, its limits."""
    engine = engine_of(backend=backend, num_pages=20, max_rows=3, token_budget=40, deterministic=True)
    described = engine.describe()
    assert described == {
        "architecture": "LlamaForCausalLM",
        "device": "cpu",
        "backend": backend,
        "slower_because": None,
        "dtype": "float32",
        "weights": "auto",
        "kv_dtype": "float32",
        "vocab_size": VOCAB,
        "max_rows": 3,
        "max_len": 320,
        "token_budget": 40,
        "page_size": 16,
        "num_pages": 20,
        "pool_bytes": 20 * 16 * 3 * 2 * 2 * 16 * 4,
        "deterministic": True,
        "threads": 1,
    }
