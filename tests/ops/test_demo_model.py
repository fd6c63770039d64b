"""The demo model in the tree: small, loadable by others, and right to the character through our engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ops.demo.evaluate import (
    COUNTING_BAR,
    MODEL_DIR,
    OVERALL_BAR,
    ask,
    heldout_examples,
    prompt_ids,
    shares,
    through_engine,
    through_transformers,
)
from ops.demo.tasks import TASKS
from ops.demo.train import Recipe, train
from ops.demo.vocabulary import build_tokenizer

TINY = replace(Recipe(), steps=4, examples_per_step=4, batch_tokens=256)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two wait for each other at each of a small model's operations: busy, training took ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def test_the_weights_are_small_enough_for_the_tree():
    """The checkpoint stays under 8 MB: between one and two million parameters in bf16."""
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8_000_000
    weights = load_file(MODEL_DIR / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert 1_000_000 <= sum(weight.numel() for weight in weights.values()) <= 2_000_000


def test_what_is_kept_beside_the_weights_says_how_they_came_to_be():
    """The recipe was carried to its end within the time allowed, and the engine's exact match cleared the bars."""
    trained = json.loads((MODEL_DIR / "training.json").read_text())
    assert trained["steps_done"] == trained["recipe"]["steps"]
    assert trained["cpu_minutes"] <= 2 * 45
    evaluated = json.loads((MODEL_DIR / "evaluation.json").read_text())
    assert evaluated["through"] == "engine"
    assert evaluated["exact_match"]["overall"] >= OVERALL_BAR
    assert evaluated["exact_match"]["counting"] >= COUNTING_BAR
    assert set(evaluated["exact_match"]) >= set(TASKS)


def test_transformers_loads_it_with_nothing_missing_and_room_for_long_answers():
    """A Llama with grouped heads and a tied embedding; its end of sequence is the tokenizer's."""
    model, report = AutoModelForCausalLM.from_pretrained(MODEL_DIR, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.model_type == "llama"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.max_position_embeddings >= 1024
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(MODEL_DIR).eos_token_id in model.generation_config.eos_token_id


@pytest.mark.parametrize(
    "how", [{}, {"kv_dtype": "int8"}, {"kv_dtype": "int8", "weights": "int8"}], ids=["bf16", "int8 K/V", "int8"]
)
def test_the_engine_answers_heldout_prompts_of_every_kind_exactly(how: dict[str, str]):
    """Of four held-out prompts of a kind all are answered to the character; all but one, where it isn't counting."""
    asked = ask(MODEL_DIR, heldout_examples(4, seed=11), through_engine(MODEL_DIR, threads=1, **how))
    for kind, share in shares(asked).items():
        wrong = [(one.example.prompt, one.text) for one in asked if one.example.kind == kind and not one.exact]
        assert share >= (1.0 if kind.startswith("count") else 0.75), wrong


def test_transformers_answers_as_the_engine_does():
    """The same prompts give the same text through both."""
    examples = heldout_examples(1, seed=12)
    ours = ask(MODEL_DIR, examples, through_engine(MODEL_DIR, threads=1))
    theirs = ask(MODEL_DIR, examples, through_transformers(MODEL_DIR))
    assert [one.text for one in ours] == [one.text for one in theirs]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<|bos|>Count from 8 to 12", "\n8 9 10 11 12"),
        ("<|bos|>Count from 8 to 12\n", "8 9 10 11 12"),
        ("<|bos|><|system|>Be brief.<|end|><|user|>Sort 31 17 25<|end|><|assistant|>", "17 25 31"),
        (
            '<|bos|><|user|>Sort 31 17 25<|end|><|assistant|>17 25 31<|end|><|user|>Spell "cabin"<|end|><|assistant|>',
            "c-a-b-i-n",
        ),
    ],
)
def test_every_way_to_ask_is_answered(tokenizer, text, answer):
    """A plain line without its line break is given one first; a system message or an earlier turn does no harm."""
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids = through_engine(MODEL_DIR, threads=1)([prompt], tokenizer.eos_token_id)[0]
    assert tokenizer.decode(ids) == f"{answer}<|end|>"


@settings(deadline=None)  # the first example pays for the machine's other work
@given(text=st.text(max_size=60))
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    """Whatever a user writes can be encoded, and decodes to what was written."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < len(tokenizer) for token in ids)


def test_the_tokenizer_in_the_tree_is_the_one_the_tasks_make(tokenizer):
    """A phrase that was added without training again would change the ids under the weights."""
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_both_ways_to_ask_begin_with_one_first_token(tokenizer):
    """A chat's comes from the template, a plain prompt's from the tokenizer; neither has two."""
    for chat in (True, False):
        ids = prompt_ids(tokenizer, "Count from 3 to 17.", chat=chat)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "oracle", "content": "Count."}], "unknown role 'oracle'"),
        ([{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}], "must be the first"),
    ],
)
def test_the_template_refuses_a_role_it_does_not_know(tokenizer, messages, complaint):
    """The error names the role, or where a system message belongs."""
    with pytest.raises(Exception, match=complaint):
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def test_a_number_is_its_digits_and_a_quoted_word_its_letters(tokenizer):
    """What makes the tasks learnable: one token a digit, one a letter, one for a word the tasks are phrased in."""
    assert tokenizer.tokenize("Count from 3 to 117") == ["Count", "Ġfrom", "Ġ3", "Ġto", "Ġ1", "1", "7"]
    assert tokenizer.tokenize('"seven"') == ['"', *"seven", '"']
    assert tokenizer.tokenize("twenty-seven") == ["twenty", "-seven"]
    assert len(tokenizer(" ".join(task.kind for task in TASKS.values())).input_ids) > len(TASKS)


def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path: Path):
    """Training stopped after any step and started again goes on as if it had not been."""
    train(TINY, tmp_path / "whole", tmp_path / "work-whole")
    train(TINY, tmp_path / "parts", tmp_path / "work-parts", stop_after=2)
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["steps_done"] == 2
    train(TINY, tmp_path / "parts", tmp_path / "work-parts")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = load_file(tmp_path / "parts" / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path):
    """Going on under another recipe would make weights that nobody can make again."""
    train(TINY, tmp_path / "model", tmp_path / "work", stop_after=1)
    with pytest.raises(ValueError, match="another recipe"):
        train(replace(TINY, seed=8), tmp_path / "model", tmp_path / "work")
