"""Benches in their short form, run in this process."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.bench.__main__ import main
from worker.thread_env import THREAD_ENV


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the random model is kept, so that it is made once."""
    return tmp_path_factory.mktemp("bench-cache")


@pytest.fixture
def bench(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[str, dict[str, Any]]]]:
    """`bench("loop")` is what a bench prints and the JSON it names at the end, run in this process.

    Torch and transformers take eight seconds to import, and here they are already. What a bench sets for its whole
    process, the number of threads and how they wait, is put back at the end.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(cache))
    for name, value in THREAD_ENV.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()

    def run(*words: str) -> tuple[str, dict[str, Any]]:
        code = main([*words, *quick(cache)])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out, kept(said.out)

    gc.freeze()  # each run of a bench collects what it left; looking at all of pytest, too, took 0.2 s a run
    yield run
    gc.unfreeze()
    torch.set_num_threads(threads)


def quick(cache: Path) -> list[str]:
    return ["--quick", "--threads", "1", "--cache", str(cache)]


def kept(said: str) -> dict[str, Any]:
    """The JSON that the last line names."""
    last = said.splitlines()[-1]
    assert last.startswith("JSON: ")
    found: dict[str, Any] = json.loads(Path(last.removeprefix("JSON: ")).read_text())
    return found
