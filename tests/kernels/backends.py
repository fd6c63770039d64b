"""A backend's operations, where it can be had."""

from __future__ import annotations

import pytest
import torch

from kernels.errors import KernelsUnavailable
from kernels.table import Backend, Ops, ops_for


def ops_or_skip(backend: Backend, dtype: torch.dtype = torch.float32) -> Ops:
    """The operations of a backend; where that can't be had the test is skipped, and the reason printed."""
    try:
        return ops_for(backend, dtype)
    except KernelsUnavailable as error:
        pytest.skip(f"no backend {backend}: {error}")
