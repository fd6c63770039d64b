"""Weights of fewer bits end to end: packed checkpoints, weights rounded at the start, and where they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.errors import KernelsUnavailable
from kernels.table import Backend, ops_for
from tests.engine.conftest import EngineOf
from tests.models.checkpoints import random_prompts
from tests.models.quantised import Written, write
from worker.engine import ConfigError, SequenceParams
from worker.engine.weight_form import weight_bytes_of
from worker.models.config import read_config
from worker.models.projections import Keep

PROMPTS = random_prompts((3, 17, 30))
PARAMS = [SequenceParams(6), SequenceParams(8, temperature=0.8, top_k=20, seed=5), SequenceParams(4)]
SHAPE: dict[str, Any] = {"max_rows": 3, "token_budget": 24, "dtype": "float32"}
PACKED: dict[str, Any] = {**SHAPE, "ahead": True, "backend": Backend.TORCH}
"""Rows on the device and the references' products, which is where a CPU keeps weights packed: a GPU's way, slowly."""


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("awq"), "awq")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("fp8"), "fp8, a scale an output")


@pytest.mark.parametrize("weights", ["auto", "int8"], ids=["awq", "int8"])
def test_triton_gives_the_tokens_of_torch(engine_of: EngineOf, awq: Written, weights: str):
    """Packed weights of a checkpoint, and rounded ones of a plain one, in fp32: every token as the references'."""
    try:
        ops_for(Backend.TRITON)
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    directory = awq.packed if weights == "auto" else awq.plain
    ours, theirs = (
        engine_of(directory, **{**PACKED, "backend": backend}, weights=weights).generate(PROMPTS, PARAMS)
        for backend in (Backend.TRITON, Backend.TORCH)
    )
    assert ours == theirs


def test_packed_weights_give_the_tokens_of_the_same_weights_written_out(engine_of: EngineOf, awq: Written):
    """Kept packed, written out at the start as a CPU does, and a checkpoint in fp32: one answer."""
    engines = [engine_of(awq.packed, **PACKED), engine_of(awq.packed, **SHAPE), engine_of(awq.plain, **SHAPE)]
    answers = [engine.generate(PROMPTS, PARAMS) for engine in engines]
    assert answers[0] == answers[1] == answers[2]
    packed, written_out, plain = (engine.describe()["weights"] for engine in engines)
    assert packed == "awq of 4 bits, groups of 32"
    assert written_out.startswith("float32, from awq of 4 bits, groups of 32: 0.00 GB; a GPU keeps them packed")
    assert plain == "auto"


def test_a_row_gets_the_same_tokens_alone_in_deterministic_mode(engine_of: EngineOf, awq: Written):
    """Packed weights too."""
    engine = engine_of(awq.packed, **PACKED, deterministic=True)
    among = engine.generate(PROMPTS, PARAMS)
    assert [engine.generate([p], q)[0] for p, q in zip(PROMPTS, PARAMS, strict=True)] == among


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
def test_rounded_weights_are_told_and_generate(engine_of: EngineOf, model: Path, weights: str, awq: Written):
    """In the log line of the start: what was asked for, and of what."""
    engine = engine_of(awq.plain, **PACKED, weights=weights)
    assert engine.describe()["weights"] == weights
    assert [len(text.token_ids) for text in engine.generate(PROMPTS, PARAMS)] == [6, 8, 4]


def test_what_cannot_be_had_is_refused(engine_of: EngineOf, model: Path, awq: Written):
    """On a CPU's own way; over weights that are packed already; sizes that no group divides (the model's inner 112)."""
    with pytest.raises(ConfigError, match="weights int4 is for GPUs; on this CPU give --weights int8 or auto"):
        engine_of(weights="int4")
    with pytest.raises(
        ConfigError, match="weights int4: the checkpoint's are awq of 4 bits, groups of 32 already; give"
    ):
        engine_of(awq.packed, **PACKED, weights="int4")
    with pytest.raises(ConfigError, match=r"weights int4 takes inputs in multiples of 32; mlp.down_proj has 112: give"):
        engine_of(**PACKED, weights="int4")


@pytest.mark.parametrize(
    ("keep", "packed"),
    [
        (Keep.AS_READ, True),
        (Keep.PLAIN, True),
        (Keep.AS_READ, False),
        *((k, False) for k in (Keep.INT8, Keep.INT4, Keep.FP8)),
    ],
)
def test_weights_take_what_is_counted(engine_of: EngineOf, awq: Written, keep: Keep, packed: bool):
    """Every tensor of a decoder, summed, is what is counted before anything is loaded, biases and a table of angles
    aside."""
    directory = awq.packed if packed else awq.plain
    asked = {} if keep in (Keep.AS_READ, Keep.PLAIN) else {"weights": str(keep)}
    place = {**SHAPE, "backend": Backend.TORCH} if keep is Keep.PLAIN else PACKED
    decoder = engine_of(directory, **place, **asked)._decoder
    assert decoder.keep is keep
    assert weight_bytes_of(read_config(directory), keep, torch.float32) == held(decoder)


def held(decoder: Any) -> int:
    """Bytes of all tensors that a decoder's layers, embedding and head hold."""
    tensors: dict[int, torch.Tensor] = {}

    def look(value: Any, depth: int = 0) -> None:
        if isinstance(value, torch.Tensor):
            tensors[id(value) if value.is_mkldnn else value.data_ptr()] = value  # a packed one shows no storage
        elif depth < 6 and callable(value) and getattr(value, "__closure__", None):
            for cell in value.__closure__:
                look(cell.cell_contents, depth + 1)
        elif depth < 6 and isinstance(value, list):
            for one in value:
                look(one, depth + 1)
        elif depth < 6 and type(value).__module__.startswith(("kernels", "worker")) and hasattr(value, "__dict__"):
            for one in vars(value).values():
                look(one, depth + 1)

    for part in (decoder._layers, decoder._embedding, decoder._norm, decoder._head):
        look(part)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def test_of_a_model_of_eight_billion_the_count_is_right(model: Path):
    """Llama-3.1-8B's shape: 16.1 GB in bf16, 9.1 with projections of 8 bits, 5.8 of 4: the head and embedding stay."""
    shape = replace(
        read_config(model), vocab_size=128_256, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8,
        head_dim=128, intermediate_size=14_336, tied_embeddings=False,
    )  # fmt: skip
    taken = {keep: round(weight_bytes_of(shape, keep, torch.bfloat16) / 1e9, 1) for keep in Keep}
    assert taken == {Keep.AS_READ: 16.1, Keep.PLAIN: 16.1, Keep.INT8: 9.1, Keep.INT4: 5.8, Keep.FP8: 9.1}
