"""What config.json and generation_config.json say about ids and default values."""

import pytest

from worker.text import GenerationDefaults, ModelFilesInvalid, TextModel
from worker.text.generation import end_ids, generation_defaults, vocab_size


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 3}, {7, 8}),
        ({"eos_token_id": 7}, {}, {7}),
        ({"eos_token_id": None}, {"eos_token_id": [3, 4]}, {3, 4}),
        ({}, {}, {2}),
    ],
)
def test_ending_ids_come_from_the_first_place_that_names_them(generation, config, expected):
    """generation_config.json before config.json before the tokenizer, one id or a list of them."""
    assert end_ids(generation, config, 2) == expected


def test_a_model_may_have_no_ending_ids():
    """Then only a job's own stops and max_tokens end an output."""
    assert end_ids({}, {}, None) == frozenset()


def test_a_model_directory_gives_its_ending_ids_and_defaults(make_model):
    """They are read from the files beside the tokenizer; without generation_config.json nothing is changed."""
    generation = {"eos_token_id": [2, 4], "do_sample": True, "temperature": 0.6, "top_k": 20, "max_new_tokens": 512}
    generation["repetition_penalty"] = 1.05
    model = TextModel.from_pretrained(str(make_model(name="with", generation=generation)))
    assert model.eos_ids == {2, 4}
    assert model.defaults == GenerationDefaults(temperature=0.6, top_k=20, max_tokens=512, repetition_penalty=1.05)
    bare = TextModel.from_pretrained(str(make_model(name="without")))
    assert bare.eos_ids == {2}, "the tokenizer's"
    assert bare.defaults == GenerationDefaults(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=None)


def test_a_model_that_does_not_sample_is_greedy():
    """`do_sample: false` counts, whatever temperature stands beside it; no word about it changes nothing."""
    assert generation_defaults({"do_sample": False, "temperature": 0.7, "top_p": 0.9}).temperature == 0
    assert generation_defaults({"temperature": 0.7, "top_p": 0.9, "min_p": 0.1}) == GenerationDefaults(
        temperature=0.7, top_p=0.9, min_p=0.1
    )


@pytest.mark.parametrize(
    "generation",
    [
        {"temperature": -1},
        {"repetition_penalty": 0},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": "many"},
        {"max_new_tokens": 0},
    ],
)
def test_a_default_out_of_range_is_refused_by_name(generation):
    """The worker says at its start what every job would trip over."""
    with pytest.raises(ModelFilesInvalid, match=f"generation_config.json: {next(iter(generation))} must be"):
        generation_defaults(generation)


@pytest.mark.parametrize("config", [{}, {"vocab_size": 0}, {"vocab_size": "32000"}])
def test_a_config_without_a_vocabulary_is_refused(config):
    """Without its size no id can be checked."""
    with pytest.raises(ModelFilesInvalid, match="vocab_size must be a positive whole number"):
        vocab_size(config)
