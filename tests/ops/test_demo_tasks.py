"""The demo's tasks: every prompt has one answer, and a held-out prompt asks for what no training prompt asked for."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from ops.demo.evaluate import heldout_examples
from ops.demo.tasks import COUNTING_KINDS, TASKS, Split, counting, sample, sample_any, split_of
from ops.demo.vocabulary import build_tokenizer
from ops.demo.words import number_in_words

KINDS = list(TASKS)


def drawn(kind: str, split: Split = Split.TRAIN, count: int = 200):
    rng = Random(f"tests {kind}")
    return [sample(rng, kind, split) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_there_are_at_least_eight_kinds_of_task():
    """The demo shows eight kinds of task or more, counting among them."""
    assert len(KINDS) >= 8
    assert set(KINDS) >= COUNTING_KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_examples(kind):
    """A job made from a seed can be made again in another process."""
    assert drawn(kind) == drawn(kind)
    assert len({example.prompt for example in drawn(kind)}) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_heldout_prompt_asks_for_what_no_training_prompt_asks_for(kind):
    """The splits share no arguments: a task's draw lies in one of them for good, and both splits have some."""
    rng = Random(1)
    keys = {TASKS[kind].draw(rng).key for _ in range(2000)}
    heldout = {key for key in keys if split_of(kind, key) is Split.HELDOUT}
    assert 0 < len(heldout) < len(keys) / 4
    trained, asked = drawn(kind, Split.TRAIN, 2000), drawn(kind, Split.HELDOUT, 200)
    assert not {example.prompt for example in trained} & {example.prompt for example in asked}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_exact_answer_counts(kind):
    """A repeated, a missing or an added character makes an answer wrong."""
    for example in drawn(kind, count=20):
        assert example.is_answered_by(example.answer)
        assert not example.is_answered_by(example.answer[:-1])
        assert not example.is_answered_by(example.answer + example.answer[-1])
        assert not example.is_answered_by(example.answer + " ")


@pytest.mark.parametrize(("kind", "step"), [("count", 1), ("count_down", -1)])
def test_a_count_runs_from_first_to_last_without_a_gap(kind, step):
    """Every number of a count is the one before it and one more (or less), and the prompt names both ends."""
    for example in drawn(kind):
        numbers = [int(number) for number in example.answer.split()]
        assert all(after - before == step for before, after in pairwise(numbers))
        assert str(numbers[0]) in example.prompt
        assert str(numbers[-1]) in example.prompt


def test_a_sum_a_sort_a_larger_one_and_a_reversal_are_right():
    """Answers agree with Python's own arithmetic, order and slices, taken from the prompt's words."""
    for example in drawn("add"):
        assert example.answer.endswith(f"sum {sum(numbers_in(example.prompt))}")
    for example in drawn("compare"):
        assert int(example.answer) == max(numbers_in(example.prompt))
    for example in drawn("sort"):
        assert [int(number) for number in example.answer.split()] == sorted(numbers_in(example.prompt))
    for example in drawn("reverse"):
        assert example.answer[::-1] in example.prompt
    for example in drawn("spell"):
        assert example.answer.replace("-", "") in example.prompt


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (105, "one hundred and five"),
        (427, "four hundred and twenty-seven"),
    ],
)
def test_numbers_are_written_as_english_writes_them(number, words):
    """Hyphen within the tens, `and` after the hundred."""
    assert number_in_words(number) == words


@pytest.mark.parametrize("number", [-1, 1000])
def test_a_number_out_of_range_has_no_words(number):
    """0 to 999 is what the model was taught."""
    with pytest.raises(ValueError, match=str(number)):
        number_in_words(number)


@pytest.mark.parametrize("tokens", [8, 9, 12, 40, 100, 300, 340])
@pytest.mark.parametrize("split", list(Split))
def test_a_count_can_be_had_in_a_wanted_length(tokenizer, tokens, split):
    """A job of a wanted number of tokens has it, or one or two fewer, the end token included."""
    for seed in range(10):
        example = counting(Random(seed), tokens, split)
        length = len(tokenizer(example.answer, add_special_tokens=False).input_ids) + 1
        assert tokens - 2 <= length <= tokens


@pytest.mark.parametrize("tokens", [0, 7, 341])
def test_a_count_of_an_untrained_length_is_refused(tokens):
    """The error names the length that was asked for."""
    with pytest.raises(ValueError, match=f"got {tokens}"):
        counting(Random(0), tokens)


def test_answers_run_from_two_tokens_to_some_three_hundred(tokenizer):
    """Jobs are of very different length: that is what continuous batching is shown on."""
    rng = Random(2)
    answers = [sample_any(rng, Split.HELDOUT).answer for _ in range(2000)]
    lengths = [len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False).input_ids]
    assert min(lengths) <= 3
    assert 300 <= max(lengths) <= 340


def test_heldout_examples_are_different_prompts_of_the_kinds_asked_for():
    """An evaluation asks nothing twice, and the same seed asks the same."""
    examples = heldout_examples(30, seed=4, kinds=("count", "months"))
    assert examples == heldout_examples(30, seed=4, kinds=("count", "months"))
    assert {example.kind for example in examples} == {"count", "months"}
    assert len({example.prompt for example in examples}) == len(examples)


def numbers_in(prompt: str) -> list[int]:
    return [int(word) for word in "".join(c if c.isdigit() else " " for c in prompt).split()]
