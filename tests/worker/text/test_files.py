"""A model's directory: where it is, what may be wrong with it, and what its fingerprint tells apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from worker.text import ModelFilesInvalid, ModelFilesMissing, TextModel
from worker.text.files import fingerprint


def one_line(raised: pytest.ExceptionInfo[Exception]) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_directory_that_lacks_a_file_is_refused_by_its_name(make_model, missing):
    """One line names the directory and the file."""
    directory = make_model()
    (directory / missing).unlink()
    with pytest.raises(ModelFilesMissing) as raised:
        TextModel.from_pretrained(str(directory))
    assert f"{directory} lacks {missing}" in one_line(raised)


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", ['{"vocab_size": ', "[]", '"\udcff"'.encode("utf-8", "surrogateescape").decode("latin-1")]
)
def test_a_damaged_file_is_refused_by_its_name(make_model, file, content):
    """One line names the directory and says what is wrong, whatever the library beneath raises."""
    directory = make_model(generation={})
    (directory / file).write_text(content, encoding="latin-1")
    with pytest.raises(ModelFilesInvalid) as raised:
        TextModel.from_pretrained(str(directory))
    assert str(directory) in one_line(raised)


def test_what_is_no_directory_is_refused(tmp_path, make_model):
    """A path that is not there, a file, and a hub id that can't be had each end in one line."""
    file = make_model() / "config.json"
    for path, reason in (
        (tmp_path / "nowhere", "does not exist"),
        (file, "is a file"),
        ("nobody-here/no-such-model", "the hub did not give it"),
    ):
        with pytest.raises(ModelFilesMissing, match=reason) as raised:
            TextModel.from_pretrained(str(path))
        assert str(path) in one_line(raised)


def test_a_hub_id_is_found_in_the_hubs_cache(make_model, tmp_path):
    """`org/name` is served from the cache where it lies there already, without a network."""
    cache = tmp_path / "cache" / "models--some-org--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("c0ffee")
    shutil.copytree(make_model(), cache / "snapshots" / "c0ffee")
    program = "from worker.text import TextModel; print(TextModel.from_pretrained('some-org/tiny').vocab_size)"
    environment = os.environ | {"HF_HUB_CACHE": str(cache.parent), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert int(out.stdout) > 0


@pytest.fixture
def weighted(make_model):
    """A model directory with weights in two shards."""
    directory = make_model()
    for shard in (1, 2):
        weights = {f"layer{shard}": np.arange(4096, dtype=np.float32) + shard, "empty": np.zeros(0, np.float32)}
        save_file(weights, directory / f"model-{shard}.safetensors")
    index = {"weight_map": {"layer1": "model-1.safetensors", "layer2": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_copy_has_the_same_fingerprint(weighted, tmp_path):
    """Wherever it lies, whatever lies beside it that is not loaded."""
    copy = shutil.copytree(weighted, tmp_path / "elsewhere")
    (copy / "README.md").write_text("notes")
    save_file({"other": np.zeros(3, np.float32)}, copy / "consolidated.safetensors")
    one, other = (TextModel.from_pretrained(str(directory)).fingerprint for directory in (weighted, copy))
    assert one == other
    assert len(one) == 32


def change_weights(directory):
    save_file(
        {"layer2": np.arange(4096, dtype=np.float32) * 1.001 + 2, "empty": np.zeros(0, np.float32)},
        directory / "model-2.safetensors",
    )


def change_config(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))


def change_tokenizer(directory):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_template(directory):
    (directory / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [change_weights, change_config, change_tokenizer, change_template])
def test_another_model_has_another_fingerprint(weighted, change):
    """Weights of the same shapes, the configuration, the tokenizer and the chat template each count."""
    before = TextModel.from_pretrained(str(weighted)).fingerprint
    change(weighted)
    assert TextModel.from_pretrained(str(weighted)).fingerprint != before


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"not json at all!", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_weights_that_are_no_safetensors_are_refused(weighted, content):
    """A truncated download is told apart from a model."""
    (weighted / "model-1.safetensors").write_bytes(content)
    with pytest.raises(ModelFilesInvalid, match=r"model-1.safetensors is no safetensors file"):
        fingerprint(weighted, "")
