"""The kernels as machine code of four GPUs, compiled here without one: what must hold of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.gpu.architectures import Architecture
from ops.aot.bounds import broken
from ops.aot.compiled import Compiled

ROOT = Path(__file__).resolve().parents[2]
MOST = 120  # compilations, so that this part keeps to its two minutes
Found = list[Compiled]


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Everything compiled, in a process of its own: where kernels are interpreted they can't be compiled."""
    path = tmp_path_factory.mktemp("aot") / "found.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "ops.aot", "--quick", "--json", str(path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert path.exists(), f"ops.aot ended with {ran.returncode}:\n{ran.stderr[-2000:]}"
    return [Compiled(**one) for one in json.loads(path.read_text())]


def test_every_kernel_compiles_for_every_target(found: Found):
    """Each kernel and each of the quick cases is there for each of the four GPUs, or those that have its numbers. What
    cases share is compiled once."""
    assert len({one.name for one in found}) >= 15
    assert len(found) <= MOST
    everywhere = {target.value for target in Architecture}
    for part in (0, 2):  # of "case: kernel"
        for name in {one.name.rpartition(": ")[part] for one in found}:
            wanted = everywhere - {"sm_80"} if name in ("fp8_linear, rows to FP8", "rows") else everywhere  # no FP8
            wanted = everywhere - {"gfx942"} if name == "blocks" else wanted  # made of NVIDIA's instructions
            wanted = {"sm_90"} if "of many rows" in name else wanted  # elsewhere it is launched as with few
            assert {one.target for one in found if one.name.rpartition(": ")[part] == name} == wanted, name


def test_every_bound_holds(found: Found):
    """No stack, no spills, shared memory below the target's, matrix instructions, and copies under way in decode."""
    assert not [f"{one.name} on {one.target}: {what}" for one in found for what in broken(one)]


def one_like(found: Found, name: str, target: str) -> Compiled:
    return next(one for one in found if name in one.name and one.target == target)


@pytest.mark.parametrize(
    ("name", "target", "change", "says"),
    [
        (": decode", "sm_80", {"stack_bytes": 48}, "48 bytes of stack"),
        (": decode", "gfx942", {"spills": 3}, "3 spills"),
        (": decode", "sm_90", {"shared_bytes": 240_000}, "240,000 bytes of shared memory, the target has 232,448"),
        (": decode", "sm_90", {"buffers": 1}, "1 buffers"),
        (": decode", "sm_80", {"waits": [0, 0]}, "every wait is for all copies"),
        (": decode", "sm_100", {"registers": 255}, "255 registers"),
        (": prefill", "sm_90", {"products": {"wgmma.mma_async": 0, "mma.sync": 12}}, "no wgmma.mma_async"),
        ("rms_norm", "sm_80", {"stack_bytes": 8}, "8 bytes of stack"),
    ],
)
def test_a_bound_that_does_not_hold_is_said(found: Found, name: str, target: str, change: dict[str, object], says: str):
    """Each with its figure: what the compiler made is changed, and that alone is complained of."""
    (wrong,) = broken(Compiled(**{**one_like(found, name, target).plain(), **change}))
    assert says in wrong


SWEEP = """
import torch
from dataclasses import replace
from kernels.gpu.architectures import Architecture
from ops.aot.cases import batch_of, empty
from ops.aot.record import record
from kernels.gpu.decode_attention import attention_workspace, decode_attention
from kernels.gpu.prefill_attention import prefill_attention
from kernels.gpu.norm_rope_write import norm_rope_write
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.silu_mul import silu_mul
from kernels.gpu.quantised_linear import quantised_linear
from kernels.quantised_linear import QuantisedWeight

weight = QuantisedWeight.of(torch.zeros(128, 128, dtype=torch.bfloat16), 4, 128)
keys = set()
for decode in (0, 1, 2, 3, 7, 16, 33, 256):
    for prefill in (0, 1, 3, 5):
        for pages in (1, 2, 5, 16, 100, 256):
            batch = batch_of(decode, prefill, pages)
            T = len(batch.input_ids)
            if not T:
                continue
            q, kv = empty(T, 32, 128), empty(64, 2, 8, 32, 128)
            def step():
                x, numbers = empty(T, 4096), empty(T, dtype=torch.int64)
                rms_norm(x, empty(4096), 1e-5, x)
                norm_rope_write(empty(T, 48 * 128), kv, numbers, numbers, empty(64, 128, dtype=torch.float32))
                work = attention_workspace(batch, tuple(kv.shape), 32, deterministic=False)
                decode_attention(q, kv, batch, work, empty(T, 32, 128), scale=0.1)
                prefill_attention(q, kv, batch, work, empty(T, 32, 128), scale=0.1)
                silu_mul(empty(T, 28672))
                quantised_linear(empty(T, 128), weight)
            keys |= {launch.key for launch in record(step, Architecture.SM_80)}
print(len(keys))
"""


def test_a_model_takes_one_variant_of_each_kernel_whatever_the_batch():
    """Over 190 batches of all widths: six kernels, six variants; a quantised weight's tiles are small or large, its
    parts are added, or it is written out. So nothing is compiled once the engine is warm."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        [sys.executable, "-c", SWEEP], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == 6 + 4
