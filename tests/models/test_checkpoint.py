"""Weights: found, whole and of the shapes that config.json says, or one clear line about what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels.table import Backend, ops_for
from tests.models.checkpoints import Shelf
from tests.models.direct import decoder_of
from worker.models.checkpoint import Checkpoint, locate
from worker.models.errors import ModelError

WHOLE, SHARDED = "llama, llama3 rope", "qwen3, sharded"
INDEX = "model.safetensors.index.json"
A_WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def copy_of(shelf: Shelf, name: str, to: Path) -> Path:
    return Path(shutil.copytree(shelf(name), to / "copy"))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def refusal(directory: Path) -> str:
    """What loading the decoder says."""
    with pytest.raises(ModelError) as refused:
        decoder_of(directory, ops_for(Backend.TORCH))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_tensor_is_found_in_its_shard(shelf: Shelf):
    """The index of a sharded checkpoint leads to the same tensors that the files hold."""
    directory = shelf(SHARDED)
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 2
    checkpoint = Checkpoint(directory)
    for name, tensor in ((n, t) for shard in shards for n, t in load_file(shard).items()):
        assert name in checkpoint
        assert torch.equal(checkpoint.take(name, tuple(tensor.shape), tensor.dtype), tensor)


def test_a_tensor_comes_in_the_dtype_asked_for(shelf: Shelf):
    """fp32 on disk, bf16 when taken."""
    taken = Checkpoint(shelf(WHOLE)).take("model.norm.weight", (64,), torch.bfloat16)
    assert taken.dtype == torch.bfloat16


def test_no_weights_at_all(tmp_path: Path, shelf: Shelf):
    """A directory with a config alone."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    (directory / "model.safetensors").unlink()
    assert refusal(directory) == f"{directory} holds no model.safetensors and no index of shards"


def test_pickled_weights_alone(tmp_path: Path, shelf: Shelf):
    """A .bin is named and not opened."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "found pytorch_model.bin: only safetensors are read, convert it" in refusal(directory)


def test_a_missing_shard(tmp_path: Path, shelf: Shelf):
    """The shard that the index names is named."""
    directory = copy_of(shelf, SHARDED, tmp_path)
    (directory / "model-00002-of-00008.safetensors").unlink()
    assert refusal(directory) == f"{directory} lacks model-00002-of-00008.safetensors, which its index names"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": ["a"]}'])
def test_a_damaged_index(tmp_path: Path, shelf: Shelf, text: str):
    """Not JSON, or not an index."""
    directory = copy_of(shelf, SHARDED, tmp_path)
    (directory / INDEX).write_text(text)
    assert f"{directory / INDEX} can't be read" in refusal(directory)


def test_an_index_that_names_the_wrong_shard(tmp_path: Path, shelf: Shelf):
    """The tensor isn't in the file it is said to be in."""
    directory = copy_of(shelf, SHARDED, tmp_path)
    index = json.loads((directory / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][A_WEIGHT] = next(file for file in files if file != index["weight_map"][A_WEIGHT])
    (directory / INDEX).write_text(json.dumps(index))
    assert "can't be read" in refusal(directory)
    assert A_WEIGHT in refusal(directory)


def test_a_damaged_file(tmp_path: Path, shelf: Shelf):
    """Cut off in the middle, as by a broken download."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    whole = (directory / "model.safetensors").read_bytes()
    for cut in (0, 5, 100, len(whole) // 2):
        (directory / "model.safetensors").write_bytes(whole[:cut])
        assert "can't be read" in refusal(directory)
        assert "download it again" in refusal(directory)


def test_a_missing_tensor(tmp_path: Path, shelf: Shelf):
    """The tensor is named."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    change_weights(directory, lambda weights: weights.pop(A_WEIGHT))
    assert refusal(directory) == f"{directory}: the weights hold no tensor {A_WEIGHT}; is the checkpoint complete?"


def test_a_tensor_of_another_shape(tmp_path: Path, shelf: Shelf):
    """Both shapes are given."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    change_weights(directory, lambda weights: weights.update({A_WEIGHT: torch.zeros(3, 64)}))
    assert f"{A_WEIGHT} has shape (3, 64), but config.json asks for (64, 64)" in refusal(directory)


def test_weights_that_the_config_leaves_out(tmp_path: Path, shelf: Shelf):
    """A bias that the config doesn't ask for would be left out without a word, and every answer be wrong."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    bias = "model.layers.1.self_attn.k_proj.bias"
    change_weights(directory, lambda weights: weights.update({bias: torch.zeros(32)}))
    assert f"config.json asks for no {bias}, which the weights hold" in refusal(directory)


def test_rotary_frequencies_of_old_checkpoints_are_passed_over(tmp_path: Path, shelf: Shelf):
    """They follow from the config."""
    directory = copy_of(shelf, WHOLE, tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(directory, lambda weights: weights.update({name: torch.zeros(8)}))
    assert decoder_of(directory, ops_for(Backend.TORCH)).dtype == torch.float32


def test_a_directory_is_its_own_place(tmp_path: Path):
    """Absolute or not, with or without a slash at the end."""
    assert locate(str(tmp_path)) == tmp_path
    assert locate(f"{tmp_path}/") == tmp_path


@pytest.mark.parametrize("where", ["/nowhere/model", "./nowhere", "a/b/c", "~/nowhere", "nowhere"])
def test_a_directory_that_is_not_there(where: str):
    """What can't be a hub id is a directory that is missing."""
    with pytest.raises(ModelError, match=f"model directory {where} does not exist"):
        locate(where)


def test_a_file_in_place_of_a_directory(tmp_path: Path):
    """As when the weights themselves are named."""
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match=r"is a file; expected a directory in Hugging Face format"):
        locate(str(file))


def test_a_hub_id_that_the_hub_does_not_give():
    """One line says that neither a directory nor the hub has it; the hub is offline in tests."""
    with pytest.raises(ModelError, match="slipstream/no-such-model is no directory here, and the hub") as refused:
        locate("slipstream/no-such-model")
    assert "\n" not in str(refused.value)
