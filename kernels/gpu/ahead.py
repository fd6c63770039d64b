"""Kernels that are launched before the one before them has ended (programmatic dependent launch, NVIDIA's GPUs from
sm_90 on): their programs are there when their inputs are.

Each such kernel says first that the next one may be launched, and waits before it touches anything another kernel
writes or reads. It waits until the kernel before has ended, so what holds of one holds of all before.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.gpu.architectures import LAUNCH_AHEAD, architecture


def ahead(device: torch.device) -> dict[str, Any]:
    """Options of a launch of a kernel that begins with `wait_for_earlier`."""
    if LAUNCH_AHEAD[architecture(device)]:
        return {"AHEAD": True, "launch_pdl": True}
    return {"AHEAD": False}


@triton.jit
def let_next_begin(AHEAD: tl.constexpr):
    """The next kernel may be launched as soon as all programs of this one have begun."""
    if AHEAD:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_earlier(AHEAD: tl.constexpr):
    """Everything the kernels before have written is there, and nothing they read is needed any more."""
    if AHEAD:
        tl.extra.cuda.gdc_wait()
