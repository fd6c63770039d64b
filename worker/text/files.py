"""A model's directory: where it is, its JSON files, a fingerprint of what decides a job's tokens. No tensors in here.

ModelFilesError             one line that says what to do; the worker ends with it
├── ModelFilesMissing       no such directory or hub id, or a file of it is not there
└── ModelFilesInvalid       a file is there, but not what it should be
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLE_BYTES = 1024  # of each tensor in the fingerprint


class ModelFilesError(Exception):
    """A model's files can't be used."""


class ModelFilesMissing(ModelFilesError):
    """A file or the whole directory is not there."""


class ModelFilesInvalid(ModelFilesError):
    """A file does not hold what it should."""


def locate(model: str) -> Path:
    """The directory of `model`: a path, or a hub id like "org/name", fetched where the cache lacks it.

    Raises ModelFilesMissing where it is neither.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelFilesMissing(f"{model} is a file; expected a model directory in Hugging Face format")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        raise ModelFilesMissing(f"model directory {model} does not exist; expected a directory or a hub id (org/name)")
    from huggingface_hub import snapshot_download  # what transformers fetches with; 0.3 s that a directory doesn't need

    wanted = ["*.json", "*.jinja", "*.safetensors"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except Exception as error:  # the hub's, the network's, the disk's: all end in the same advice
        reason = str(error).strip().splitlines()[0]
        raise ModelFilesMissing(f"{model} is no directory here, and the hub did not give it: {reason}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelFilesMissing or ModelFilesInvalid."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFilesMissing(f"{path.parent} lacks {path.name}; is it a complete model directory?") from None
    except (OSError, ValueError) as error:
        raise ModelFilesInvalid(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelFilesInvalid(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def fingerprint(directory: Path, template: str) -> str:
    """32 hex digits that differ where weights, configuration, tokenizer or `template` do, wherever the files lie.

    Of the weights it reads names, sizes, headers and 1 KiB from the middle of every tensor: fine-tunes of one model
    share all but the last, and reading it all would take minutes. A change that misses every such middle goes unseen.
    Raises ModelFilesInvalid for a weight file that isn't safetensors.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "tokenizer.json"):
        _add(digest, name.encode(), (directory / name).read_bytes())
    _add(digest, b"template", template.encode())
    for path in _weight_files(directory):
        _add(digest, path.name.encode(), str(path.stat().st_size).encode(), *_samples(path))
    return digest.hexdigest()


def _add(digest: Any, *parts: bytes) -> None:
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))  # else "a" + "bc" and "ab" + "c" were the same
        digest.update(part)


def _weight_files(directory: Path) -> list[Path]:
    """The files that are loaded as weights: those of the index, else the only one; what lies beside them has no say."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError) as error:
            raise ModelFilesInvalid(f"{index}: expected a weight_map of tensor names to files: {error!r}") from None
    else:
        names = ["model.safetensors"]
    return [directory / name for name in names if (directory / name).exists()]


def _samples(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file, then the middle of each of its tensors."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, path.stat().st_size))  # not safetensors: any number may stand there
            yield header
            for name, tensor in sorted(json.loads(header).items()):
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    file.seek(8 + length + max(begin, (begin + end - SAMPLE_BYTES) // 2))
                    yield file.read(min(SAMPLE_BYTES, end - begin))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelFilesInvalid(f"{path} is no safetensors file: {error}; download it again") from None
