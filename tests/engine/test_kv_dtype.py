"""Pages of K/V in a smaller dtype: the same tokens on every backend that has them, and twice as many pages or more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.table import Backend
from tests.engine.conftest import EngineOf
from tests.kernels.backends import ops_or_skip
from tests.models.checkpoints import random_prompts
from worker.engine import ConfigError, SequenceParams
from worker.engine.kv_format import KvFormat
from worker.models.config import read_config

PROMPTS = random_prompts((3, 17, 40))
PARAMS = [SequenceParams(6), SequenceParams(8, temperature=0.8, top_k=20, seed=5), SequenceParams(4)]
SHAPE: dict[str, Any] = {"max_rows": 3, "token_budget": 24, "dtype": "float32", "ahead": True}


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_triton_gives_the_tokens_of_torch(engine_of: EngineOf, kv_dtype: str):
    """In the interpreter where there is no GPU, in fp32: what is stored and read is the same to the code."""
    ops_or_skip(Backend.TRITON)
    ours, theirs = (
        engine_of(backend=backend, kv_dtype=kv_dtype, **SHAPE).generate(PROMPTS, PARAMS)
        for backend in (Backend.TRITON, Backend.TORCH)
    )
    assert ours == theirs


WAYS: dict[str, dict[str, Any]] = {
    "fp8, ahead": {"kv_dtype": "fp8", "backend": Backend.TORCH},
    "int8, ahead": {"kv_dtype": "int8", "backend": Backend.TORCH},
    "int8": {"kv_dtype": "int8", "backend": Backend.TORCH, "ahead": None},
    "int8 in c, ahead": {"kv_dtype": "int8", "backend": Backend.C},
    "int8 in c": {"kv_dtype": "int8", "backend": Backend.C, "ahead": None},
    "int8 in c, bf16": {"kv_dtype": "int8", "backend": Backend.C, "ahead": None, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("way", WAYS)
def test_preemption_and_the_prefix_cache_change_no_token(engine_of: EngineOf, way: str):
    """What is computed again is stored again as it was; scales go with their pages."""
    prompts, same = random_prompts([20] * 6), {**SHAPE, "max_rows": 6, **WAYS[way]}
    ops_or_skip(same["backend"])
    expected = engine_of(**same).generate(prompts, SequenceParams(40))
    tight = engine_of(num_pages=14, **same)
    assert tight.generate(prompts, SequenceParams(40)) == expected
    assert tight.stats.preemptions > 0
    cached = engine_of(**same)
    assert [cached.generate(prompts, SequenceParams(40)) for _ in range(2)] == [expected] * 2
    assert cached.stats.cached_tokens > 0
    assert cached.describe()["kv_dtype"] in ("int8", "float8_e4m3fn")


def test_a_page_takes_what_it_holds_and_its_scales(model: Path):
    """Three layers of two heads of 16 elements, 16 tokens a page: bf16, FP8, and INT8 with four bytes for each head."""

    shape = read_config(model)
    entries = 3 * 2 * 2 * 16
    sizes = [KvFormat.of(name, torch.bfloat16).page_bytes(shape, 16) for name in ("auto", "fp8", "int8")]
    assert sizes == [entries * 16 * 2, entries * 16, entries * (16 + 4)]


@pytest.mark.parametrize("how", [{}, {"backend": "c", "ahead": True}], ids=["plain loop", "c"])
def test_where_there_is_no_such_kernel_it_is_refused(engine_of: EngineOf, how: dict[str, Any]):
    """Nothing is loaded then."""
    with pytest.raises(ConfigError, match="kv_dtype fp8 is for GPUs; on this CPU give --kv-dtype int8 or auto"):
        engine_of(kv_dtype="fp8", **how)


def test_the_pool_of_int8_pages_is_counted_with_its_scales(engine_of: EngineOf):
    """Of 20 pages: 16 tokens, three layers, keys and values of two heads of 16 codes, four bytes more for each head."""
    assert engine_of(kv_dtype="int8", num_pages=20).describe()["pool_bytes"] == 20 * 16 * 3 * 2 * 2 * (16 + 4)
