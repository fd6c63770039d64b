"""A checkpoint's tensors: safetensors, whole or sharded, one at a time so that each can be released once packed.

They are mapped straight to the device that they are asked for. Only safetensors: a pickle runs code, and a model is
data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.models.errors import ModelError


def locate(model: str) -> Path:
    """The directory of `model`: a path, or a hub id whose files `transformers` finds in its cache or fetches.

    Raises ModelError if it is neither.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{model} is a file; expected a directory in Hugging Face format")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(f"model directory {model} does not exist")
    return _from_hub(model)


def weight_bytes(directory: Path) -> int:
    """What the weights take on the disk, and about as much in memory."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _from_hub(model: str) -> Path:
    from transformers.utils import cached_file, has_file

    try:
        config = cached_file(model, "config.json")
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        if has_file(model, "model.safetensors.index.json"):
            index = Path(cached_file(model, "model.safetensors.index.json"))
            for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
                cached_file(model, shard)
        else:
            cached_file(model, "model.safetensors")
    except OSError as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{model} is no directory here, and the hub did not give it: {first}") from None
    return Path(config).parent


class Weights(Protocol):
    """Where a decoder takes its tensors from: a Checkpoint, or what stands in for one."""

    @property
    def device(self) -> torch.device:
        """Where they lie once they are taken."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor `name` of that shape, as dtype. Raises ModelError."""
        ...

    def refuse_unused(self, prefix: str) -> None:
        """Raise ModelError if nothing took a tensor under `prefix`."""
        ...


class Checkpoint:
    """The tensors of a model directory, by name."""

    def __init__(self, directory: Path, device: torch.device | None = None) -> None:
        """Read the index; raises ModelError if there is no safetensors file or the index names a missing one.

        device: where the tensors are to lie; the CPU by default.
        """
        self._files = _files_by_tensor(directory)
        self._directory = directory
        self.device = device or torch.device("cpu")
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor `name`, checked to be of `shape`, as `dtype`.

        Raises ModelError if it is missing, of another shape, or its file is damaged.
        """
        with self._opened(name) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{self._files[name]}: {name} has shape {tuple(tensor.shape)}, but config.json asks for {shape}"
            )
        self._taken.add(name)
        return tensor.to(dtype)

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """The file that holds `name`. Raises ModelError if none does or it can't be read."""
        file = self._files.get(name)
        if file is None:
            raise ModelError(f"{self._directory}: the weights hold no tensor {name}; is the checkpoint complete?")
        try:
            with safe_open(file, framework="pt", device=str(self.device)) as tensors:
                yield tensors
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} can't be read ({error}); download it again") from None

    def look(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and safetensors' name of the dtype of a tensor that is there. Raises ModelError as `take` does."""
        with self._opened(name) as tensors:
            found = tensors.get_slice(name)
            return tuple(found.get_shape()), str(found.get_dtype())

    def refuse_unused(self, prefix: str) -> None:
        """Raise ModelError if nothing took a tensor under `prefix`: weights that are left out give wrong answers.

        Rotary frequencies are passed over: old checkpoints carry them, and they follow from the config.
        """
        left = set(self._files) - self._taken
        unused = sorted(name for name in left if name.startswith(prefix) and not name.endswith(".rotary_emb.inv_freq"))
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            raise ModelError(
                f"{self._directory}: config.json asks for no {unused[0]}{more}, which the weights hold: "
                f"they belong to another model or config"
            )


def _files_by_tensor(directory: Path) -> dict[str, Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            weight_map: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index} can't be read ({error!r}); download it again") from None
        missing = sorted({f for f in weight_map.values() if not (directory / f).exists()})
        if missing:
            raise ModelError(f"{directory} lacks {', '.join(missing)}, which its index names")
        return {name: directory / file for name, file in weight_map.items()}
    whole = directory / "model.safetensors"
    if not whole.exists():
        other = [p.name for p in directory.glob("*.bin")]
        hint = f" (found {other[0]}: only safetensors are read, convert it)" if other else ""
        raise ModelError(f"{directory} holds no model.safetensors and no index of shards{hint}")
    try:
        with safe_open(whole, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), whole)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{whole} can't be read ({error}); download it again") from None
