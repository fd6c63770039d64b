"""Weights stored as int8: what the engine says of them, and what it does where they can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.linear import int8_refused
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import random_prompts
from worker.engine import SequenceParams, SlowerBackend

PROMPTS = random_prompts((3, 17, 40))


@pytest.mark.parametrize("how", [{}, {"ahead": True}], ids=["plain loop", "ahead"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_with_int8_weights_says_so(engine_of: EngineOf, dtype: str, how: dict[str, Any]):
    """And its tokens are the same alone and in company."""
    if refused := int8_refused(torch.device("cpu"), getattr(torch, dtype), ()):
        pytest.skip(refused)
    engine = engine_of(dtype=dtype, weights="int8", max_rows=3, **how)
    assert engine.describe()["weights"] == "int8"
    assert engine.slower_because is None
    together = engine.generate(PROMPTS, SequenceParams(8))
    assert [engine.generate([prompt], SequenceParams(8))[0] for prompt in PROMPTS] == together


def test_where_weights_cannot_be_int8_they_stay_as_they_are_and_it_is_said_why(engine_of: EngineOf):
    """float16 has no such product: the tokens are those of an engine that was not asked for it."""
    with pytest.warns(SlowerBackend, match=r"stay in torch\.float16: products with int8 weights are for float32 and"):
        asked = engine_of(dtype="float16", weights="int8")
    with pytest.warns(SlowerBackend):
        plain = engine_of(dtype="float16")
    described = asked.describe()
    assert described["weights"] == "auto"
    assert "weights stay in torch.float16" in described["slower_because"]
    assert asked.generate(PROMPTS, SequenceParams(4)) == plain.generate(PROMPTS, SequenceParams(4))


def test_without_a_compiler_weights_stay_as_they_are(
    engine_of: EngineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And one warning says both: no backend c, and no int8 weights."""
    from kernels.cpu import library, product_int8

    def forget() -> None:
        library.load.cache_clear()
        product_int8.int8_library.cache_clear()

    forget()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("SLIPSTREAM_KERNEL_CACHE", str(tmp_path))
    try:
        with pytest.warns(SlowerBackend, match=r"no C compiler.*; weights stay in torch\.float32"):
            described = engine_of(weights="int8").describe()
    finally:
        forget()
    assert (described["backend"], described["weights"]) == ("torch", "auto")
