"""What can't run on the GPU that is here is refused in one line with figures, before anything is loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.engine import ConfigError, Engine
from worker.engine.gpu_fit import Gpu, refuse_fp8_products, refuse_unfit
from worker.engine.kv_format import KvFormat
from worker.models.config import read_config

GIB = 1 << 30
H200 = Gpu("NVIDIA H200", (9, 0), 139 * GIB, 140 * GIB)
A100 = replace(H200, name="NVIDIA A100", capability=(8, 0))
BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("gpu", "model_has", "page_size", "weights", "says"),
    [
        ({"name": "Tesla T4", "capability": (7, 5)}, {}, 32, GIB, "capability 8.0 or later; Tesla T4 has 7.5: give"),
        ({}, {"head_dim": 288}, 32, GIB, "heads of 16 to 256 elements in multiples of 16; got 288"),
        ({}, {"head_dim": 72}, 32, GIB, "multiples of 16; got 72"),
        ({}, {}, 24, GIB, "page_size must be a multiple of 16 on a GPU; got 24"),
        ({}, {}, 32, 200 * GIB, "its weights take 200.0 GiB .* NVIDIA H200 has 139.0 GiB free of 140.0"),
    ],
    ids=["capability", "wide heads", "odd heads", "pages", "memory"],
)
def test_what_does_not_fit_a_gpu_is_refused_with_the_figures(
    model: Path, gpu: dict[str, Any], model_has: dict[str, Any], page_size: int, weights: int, says: str
):
    """One line: what, expected against got."""
    shape = replace(read_config(model), **model_has)
    with pytest.raises(ConfigError, match=says) as refused:
        refuse_unfit(replace(H200, **gpu), shape, KvFormat(BF16), page_size, weights)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("gpu", "dtype", "says"),
    [
        (A100, BF16, "FP8 weights take compute capability 8.9 or later; NVIDIA A100 has 8.0: give --weights int8"),
        (H200, torch.float16, "FP8 weights take dtype bfloat16, got float16; give --dtype bfloat16"),
        (replace(H200, name="AMD MI210", is_amd=True), BF16, "architecture gfx942; AMD MI210 is none: give --weights"),
    ],
    ids=["capability", "dtype", "amd"],
)
def test_fp8_weights_are_refused_where_they_cannot_be_multiplied(gpu: Gpu, dtype: torch.dtype, says: str):
    """What it takes, what is here, what to give instead."""
    with pytest.raises(ConfigError, match=says) as refused:
        refuse_fp8_products(gpu, dtype)
    assert "\n" not in str(refused.value)
    refuse_fp8_products(H200, BF16)
    refuse_fp8_products(replace(H200, is_amd=True, capability=(9, 4)), BF16)


def test_what_packing_takes_beside_counts_too(model: Path):
    """Weights that fit once they are packed, and not before."""
    shape = read_config(model)
    with pytest.raises(ConfigError, match=r"weights take 130.0 GiB \(and 10.0 while they are packed\) and a page"):
        refuse_unfit(H200, shape, KvFormat(BF16), 32, 130 * GIB, loading_bytes=10 * GIB)
    refuse_unfit(H200, shape, KvFormat(BF16), 32, 130 * GIB, loading_bytes=8 * GIB)


def test_fp8_pages_are_refused_where_kernels_cannot_read_them(model: Path):
    """Both capabilities are told, and what to take instead."""
    with pytest.raises(ConfigError, match=r"kv_dtype fp8 takes compute capability 8.9 or later; .* 8.0: give .*int8"):
        refuse_unfit(A100, read_config(model), KvFormat.of("fp8", BF16), 32, GIB)


def test_what_fits_is_not_refused(model: Path):
    """Up to the last byte, and on an AMD GPU, whose capability means something else."""
    shape = read_config(model)
    refuse_unfit(H200, shape, KvFormat(BF16), 32, 100 * GIB)
    refuse_unfit(H200, shape, KvFormat.of("fp8", BF16), 32, GIB)
    refuse_unfit(A100, shape, KvFormat.of("int8", BF16), 32, GIB)
    amd = replace(H200, is_amd=True, capability=(0, 0))
    refuse_unfit(amd, shape, KvFormat.of("fp8", BF16, is_amd=True), 16, GIB)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_device_cuda_is_refused_before_a_weight_is_read(model: Path, tmp_path: Path):
    """One line says why torch has none; the weights aren't even there."""
    shutil.copy(model / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"^device cuda can't be had: .*\(torch .*\); give --device cpu") as refused:
        Engine.from_pretrained(tmp_path, device="cuda")
    assert "\n" not in str(refused.value)
