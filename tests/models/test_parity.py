"""Greedy generation against `transformers`, through the whole engine, alone and in company.

Each text our engine wrote is given to `transformers` in one piece. Where every token of ours is its likeliest, and so
in turn, the text is the one its own greedy generation writes; and the logits of all positions are compared on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.table import Backend
from tests.models.checkpoints import ORIGINAL_MAX_LEN, RECIPES, Shelf, load, random_prompts, reference_logits
from tests.models.recorded import RecordedEngine
from worker.engine import Engine, SequenceParams

TOLERANCE = 1e-4
NEAR_TIE = 1e-3
"""Where the two best logits of `transformers` lie this close, either token is right."""

OUTPUT = 64
TOKEN_BUDGET = 48
PROMPTS = random_prompts((1, 2, 5, 16, 17, 31, 32, 33, 40, 60, 64, 65, 90, 120, 200, 300), seed=3)


GREEDY = SequenceParams(max_tokens=OUTPUT)


def recorded(directory: Path, **settings: Any) -> RecordedEngine:
    """An engine of sixteen small rows, with a budget that most prompts exceed."""
    small = {"threads": 1, "page_size": 16, "max_rows": 16, "token_budget": TOKEN_BUDGET}
    return RecordedEngine(Engine.from_pretrained(directory, **{**small, **settings}))


@dataclass
class Verdict:
    """How a set of texts compares: the greatest difference of a logit, and tokens that differ at near-ties or not."""

    worst: float = 0.0
    near_ties: int = 0
    wrong: int = 0
    tokens: int = 0


def verdict_on(ran: RecordedEngine, prompts: dict[int, list[int]], directory: Path) -> Verdict:
    model, verdict = load(directory), Verdict()
    for id_, prompt in prompts.items():
        ours, text = torch.stack(ran.logits[id_]), ran.tokens[id_]
        theirs = reference_logits(model, prompt + text[:-1])[len(prompt) - 1 :]
        best = theirs.topk(2).values
        differs = theirs.argmax(-1) != torch.tensor(text)
        near = best[:, 0] - best[:, 1] < NEAR_TIE
        verdict.worst = max(verdict.worst, float((ours - theirs).abs().max()))
        verdict.near_ties += int((differs & near).sum())
        verdict.wrong += int((differs & ~near).sum())
        verdict.tokens += len(text)
    return verdict


def assert_agrees(verdict: Verdict) -> None:
    print(f"{verdict}")
    assert verdict.worst < TOLERANCE
    assert verdict.wrong == 0
    assert verdict.near_ties <= 0.01 * verdict.tokens


@pytest.mark.parametrize("name", RECIPES)
def test_alone_every_token_is_the_one_of_transformers(shelf: Shelf, backend: Backend, name: str):
    """A prompt of one token, one that cuts a page and one longer than a step allows, each with the engine to itself."""
    prompts = {index: PROMPTS[index] for index in (0, 7, 15)}
    ran = recorded(shelf(name), backend=backend)
    for index, prompt in prompts.items():
        ran.run({index: prompt}, GREEDY)
    assert all(len(batch.seq_lens) == 1 for batch in ran.batches)
    assert_agrees(verdict_on(ran, prompts, shelf(name)))


@pytest.mark.parametrize("name", RECIPES)
def test_in_full_batches_every_token_is_the_one_of_transformers(shelf: Shelf, backend: Backend, name: str):
    """Sixteen prompts share batches; long ones come in chunks beside decoding rows; pages run out, some start over."""
    prompts = dict(enumerate(PROMPTS))
    ran = recorded(shelf(name), backend=backend, num_pages=48)
    ran.run(prompts, GREEDY)
    assert ran.engine.stats.preemptions > 0
    assert max(map(len, PROMPTS)) > TOKEN_BUDGET
    assert any(0 < batch.num_decode < len(batch.seq_lens) for batch in ran.batches), "no batch mixed decode and prefill"
    assert max(len(batch.seq_lens) for batch in ran.batches) >= 8
    assert all(len(text) == OUTPUT for text in ran.tokens.values())
    assert min(len(set(text)) for text in ran.tokens.values()) >= 16, "a text that repeats itself shows little"
    assert max(map(len, PROMPTS)) + OUTPUT > ORIGINAL_MAX_LEN
    assert_agrees(verdict_on(ran, prompts, shelf(name)))


@pytest.mark.parametrize("name", ["llama, llama3 rope", "mistral, window of 24, wide heads", "qwen3, sharded"])
def test_in_deterministic_mode_every_token_is_the_one_of_transformers(shelf: Shelf, backend: Backend, name: str):
    """The fixed order agrees as the fast one does, preemption and chunks included."""
    prompts = dict(enumerate(PROMPTS))
    ran = recorded(shelf(name), backend=backend, num_pages=48, deterministic=True)
    ran.run(prompts, GREEDY)
    assert ran.engine.stats.preemptions > 0
    assert_agrees(verdict_on(ran, prompts, shelf(name)))


def test_generate_says_the_same_as_transformers_generate(shelf: Shelf, backend: Backend):
    """The plain calls of both sides, one prompt each, give the same 64 tokens."""
    directory = shelf("qwen3, sharded")
    model, engine = load(directory), Engine.from_pretrained(directory, threads=1, backend=backend)
    for prompt in PROMPTS[::5]:
        (ours,) = engine.generate([prompt], GREEDY)
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=OUTPUT, do_sample=False, eos_token_id=None
        )
        assert ours.token_ids == theirs[0, len(prompt) :].tolist()
