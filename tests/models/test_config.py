"""config.json: read as `transformers` reads it, and refused by name where we can't run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.models.checkpoints import LLAMA3, RECIPES, Shelf
from worker.models.config import ARCHITECTURES, ModelConfig, RopeConfig, parse_config, read_config
from worker.models.errors import ModelError
from worker.models.quantisation import Layout, Quantisation
from worker.models.rope import inverse_frequencies

SMALLEST = {
    "vocab_size": 100,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 30,
    "intermediate_size": 100,
    "max_position_embeddings": 512,
}


# What `transformers` does not take as null, or has no field for.
NEVER_NULL = {
    "LlamaForCausalLM": "",
    "MistralForCausalLM": "num_key_value_heads",
    "Qwen2ForCausalLM": "head_dim",
    "Qwen3ForCausalLM": "head_dim",
}


def as_transformers_has_it(raw: dict[str, Any]) -> PretrainedConfig:
    """`raw` through the configuration class of its architecture."""
    kind = raw["architectures"][0].removesuffix("ForCausalLM").lower()
    return AutoConfig.for_model(kind, **{key: value for key, value in raw.items() if key != "architectures"})


def assert_same(ours: ModelConfig, theirs: PretrainedConfig) -> None:
    window = getattr(theirs, "sliding_window", None)
    everywhere = ["sliding_attention"] * ours.num_layers
    windows = [window if kind == "sliding_attention" else None for kind in getattr(theirs, "layer_types", everywhere)]
    if ours.architecture == "LlamaForCausalLM":  # keeps the key where it is given, and uses it nowhere
        windows = [None] * ours.num_layers
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert list(ours.windows) == windows
    assert ours.max_len == theirs.max_position_embeddings


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_key_value_heads": None, "head_dim": None, "sliding_window": None},
        {"use_sliding_window": True},
        {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 3},
        {"rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
    ids=str,
)
def test_what_config_json_leaves_out_is_as_in_transformers(architecture: str, more: dict[str, Any]):
    """Missing and null keys, keys of transformers 4 and of 5: the same heads, windows, angles."""
    raw = {**SMALLEST, "architectures": [architecture], **more}
    if NEVER_NULL[architecture] in more:
        del raw[NEVER_NULL[architecture]]
    assert_same(parse_config(raw, None), as_transformers_has_it(raw))


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_config_is_read_as_transformers_reads_it(shelf: Shelf, name: str):
    """What save_pretrained wrote, whole."""
    assert_same(read_config(shelf(name)), AutoConfig.from_pretrained(shelf(name)))


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        (RopeConfig(1e4), None),
        (RopeConfig(1e6, "linear", factor=4.0), {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}),
        (RopeConfig(1e4, "llama3", 8.0, 1.0, 4.0, 64), LLAMA3),
    ],
    ids=["default", "linear", "llama3"],
)
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_rotary_frequencies_are_those_of_transformers(rope: RopeConfig, scaling: dict[str, Any] | None, head_dim: int):
    """To one rounding of fp32."""
    raw = {**SMALLEST, "hidden_size": 32 * head_dim, "architectures": ["LlamaForCausalLM"]}
    theirs = as_transformers_has_it({**raw, **({"rope_parameters": scaling} if scaling else {})})
    if scaling is None:
        expected = 1.0 / 1e4 ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(rope, head_dim).double(), expected.double(), atol=0, rtol=3e-7)


LLAMA = {**SMALLEST, "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported; supported: Llama"),
        ({"architectures": None}, r"architecture \(none named\) is not supported"),
        ({"architectures": []}, r"architecture \(none named\) is not supported"),
        ({"architectures": "LlamaForCausalLM"}, r"architecture \(none named\) is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; expected 'silu'"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "'bitsandbytes' is not supported; expected awq, gptq",
        ),
        ({"quantization_config": "awq"}, "quantization_config must be an object, got 'awq'"),
        ({"hidden_size": None}, "hidden_size must be a positive whole number, got None"),
        ({"vocab_size": -1}, "vocab_size must be a positive whole number, got -1"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be a positive whole number, got 'two'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive whole number, got True"),
        ({"intermediate_size": 2.5}, "intermediate_size must be"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple of num_key_value_heads 5"),
        ({"num_key_value_heads": -2}, "num_key_value_heads must be"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be"),
        ({"head_dim": "64"}, "head_dim must be"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number above 0, got 'small'"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number above 0, got nan"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope type 'yarn' is not supported; supported: default"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a number above 0, got None"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor must be a number above 0, got None"),
        ({"rope_scaling": [1]}, r"rope_parameters must be an object, got \[1\]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_what_cannot_run_is_refused_by_name(change: dict[str, Any], says: str):
    """One line that names the key, what it holds and what was expected."""
    with pytest.raises(ModelError, match=says) as refused:
        parse_config({**LLAMA, **change}, None)
    assert "\n" not in str(refused.value)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "GEMM"}
WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False}
TENSORS = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": WEIGHTS}}}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, None),
        (AWQ, Quantisation(Layout.AWQ, 4, 128)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, Quantisation(Layout.AWQ, 4, 64)),
        (GPTQ, Quantisation(Layout.GPTQ, 4, 128, less=1)),
        ({**GPTQ, "bits": 8, "group_size": -1, "desc_act": True}, Quantisation(Layout.GPTQ, 8, None, less=1)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, Quantisation(Layout.GPTQ, 4, 128, less=0)),
        ({"quant_method": "fp8", "activation_scheme": "static"}, Quantisation(Layout.FP8, 8)),
        (TENSORS, Quantisation(Layout.FP8, 8)),
    ],
)
def test_a_quantisation_is_read(found: dict[str, Any] | None, expected: Quantisation | None):
    """AWQ's old and new keys, both formats of GPTQ, FP8 by its two writers."""
    assert parse_config({**LLAMA, "quantization_config": found}, None).quantisation == expected


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({**AWQ, "bits": 3}, "awq of 3 bits is not supported; expected 4"),
        ({**AWQ, "version": "gemv"}, "awq version 'gemv' is not supported; expected 'gemm'"),
        ({**AWQ, "zero_point": False}, "awq without zero_point"),
        ({**GPTQ, "bits": 3}, "gptq of 3 bits is not supported; expected 4 or 8"),
        ({**GPTQ, "group_size": 48}, "group_size 48 is not supported; expected a multiple of 32, or -1"),
        ({**GPTQ, "group_size": None}, "group_size None is not supported"),
        (
            {**GPTQ, "checkpoint_format": "marlin"},
            "checkpoint_format 'marlin' is not supported; expected gptq or gptq_v2",
        ),
        ({**GPTQ, "dynamic": {"-:.*down.*": {}}}, "some modules"),
        ({**GPTQ, "lm_head": True}, "a quantised lm_head is not supported"),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            r"scales of blocks \(\[128, 128\]\) is not supported",
        ),
        ({**TENSORS, "config_groups": {}}, "compressed-tensors with 0 groups"),
        (
            {
                **TENSORS,
                "config_groups": {"a": {"weights": {**WEIGHTS, "type": "int", "num_bits": 4, "strategy": "group"}}},
            },
            "int of 4 bits, a scale for each group is not supported; expected float of 8 bits",
        ),
    ],
)
def test_a_quantisation_that_cannot_be_read_is_refused_by_name(found: dict[str, Any], says: str):
    """What it is, what was expected, and what to take."""
    with pytest.raises(ModelError, match=says) as refused:
        parse_config({**LLAMA, "quantization_config": found}, None)
    assert "\n" not in str(refused.value)
    assert "take another checkpoint" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sliding_window": "wide"}, "sliding_window must be"),
        ({"layer_types": ["full_attention"]}, "layer_types must name 30 layers"),
        ({"max_window_layers": None}, "max_window_layers must be a whole number, got None"),
    ],
)
def test_windows_that_make_no_sense_are_refused_by_name(change: dict[str, Any], says: str):
    """Qwen2's, which has them all."""
    raw = {**SMALLEST, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, **change}
    with pytest.raises(ModelError, match=says):
        parse_config(raw, None)


@pytest.mark.parametrize(("eos", "ids"), [(None, set()), (2, {2}), ([2, 5], {2, 5})])
def test_the_generation_config_says_what_ends_a_text(tmp_path: Path, eos: Any, ids: set[int]):
    """One id, several or none; config.json's own where it says nothing."""
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": 7}))
    assert read_config(tmp_path).eos_ids == {7}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert read_config(tmp_path).eos_ids == (ids or {7})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"config\.json is missing: a model is a directory in Hugging Face format"),
        ("{", r"config\.json can't be read"),
        ("[]", r"config\.json: expected a JSON object, got list"),
        ("\xff", r"config\.json can't be read"),
    ],
    ids=["missing", "cut off", "a list", "no UTF-8"],
)
def test_a_config_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path, text: str | None, says: str):
    """Missing, damaged, or no object."""
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=says):
        read_config(tmp_path)


def test_an_end_of_sequence_that_is_no_id_is_refused(tmp_path: Path):
    """A name in its place."""
    with pytest.raises(ModelError, match="eos_token_id must be a token id or a list of them, got '</s>'"):
        parse_config(LLAMA, "</s>")  # type: ignore[arg-type]
