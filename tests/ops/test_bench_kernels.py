"""`ops/bench kernels`: what it counts, and what it says where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kernels.table import Backend, ops_for
from ops.bench import kernels
from ops.bench.device import Ceilings
from ops.bench.kernel_cases import LLAMA_8B, QWEN_06B, Model, cases, decode, prefill, quantised


def test_a_model_of_known_size_is_counted_right():
    """Llama-3.1-8B: 131,072 bytes of K/V a token, 15.0 GB of weights a step; Qwen3-0.6B's tied head counts."""
    assert LLAMA_8B.kv_bytes == 131_072
    assert 2 * LLAMA_8B.product_parameters == 15_009_316_864
    assert QWEN_06B.product_parameters == pytest.approx(0.596e9, rel=0.01)


def test_a_decode_row_reads_its_keys_and_values_once_and_a_prompt_sees_half_of_itself():
    """Of one layer: 2 * 8 * 128 * 2 bytes a token; four operations for each head, element and key that is seen."""
    assert decode(LLAMA_8B, 3, 100).moved == 3 * (100 * 4096 + 2 * 32 * 128 * 2)
    assert prefill(LLAMA_8B, 4, 10).flops == 4 * 32 * 128 * (11 + 12 + 13 + 14)
    assert quantised(LLAMA_8B, 1, 4).moved < quantised(LLAMA_8B, 1, 8).moved < 4096 * 28672 * 2


def test_a_floor_is_the_slower_of_memory_and_arithmetic():
    """A thousand bytes at 10 a second against a thousand operations at 100."""
    ceilings = Ceilings("slow", 10.0, 100.0, measured=True)
    assert ceilings.floor_s(1000, 1000) == 100.0
    assert ceilings.floor_s(10, 1000) == 10.0


TINY = Model("tiny", 1, 64, 4, 2, 32, 128, 300, tied=False)


def test_every_case_runs_on_the_reference():
    """At a tiny model's shapes: the calls that a GPU times are made with tensors that fit each other."""
    ops = ops_for(Backend.TORCH)
    for case in cases(TINY):
        if "2048" in case.name or "8192" in case.name or "7680" in case.name or "quantised" in case.name:
            continue  # long, or wider groups than the tiny model is
        assert case.make(torch.device("cpu"))(ops).float().isfinite().all(), case.name


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and would be measured")
def test_without_a_gpu_floors_are_printed_as_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The maker's figures, no time that anything took, and the same in the JSON asked for."""
    path = tmp_path / "found.json"
    assert kernels.main(["--device", "h200", "--only", "decode", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "predictions" in said
    assert "took" not in said
    found = json.loads(path.read_text())
    assert not found["ceilings"]["measured"]
    assert all(one["floor_us"] > 0 and "us" not in one for one in found["kernels"])
