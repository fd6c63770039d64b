"""Triton's interpreter as kernels/gpu/interpreter.py makes it: casts and dots to the bit, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.table import Backend, ops_for

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="a GPU is here: the kernels run on it, not in the interpreter"
)


@pytest.fixture(autouse=True)
def exact() -> None:
    ops_for(Backend.TRITON)


@triton.jit
def _cast(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(out_ptr.dtype.element_ty))


@triton.jit
def _dot(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@triton.jit
def _sum(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out_ptr + at, tl.load(x_ptr + at) + tl.load(x_ptr + at))


def numbers() -> Tensor:
    """4,096 of all sizes, those at rounding edges among them; none beyond fp8's range."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(3072, generator=generator) * torch.logspace(-4, 2, 3072)
    edges = (1 + torch.arange(1024) / 1024) * (1 - 2**-14)
    return torch.cat([some, edges]).clamp(-200, 200)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz], ids=str
)
def test_casts_round_to_the_nearest_even(dtype: torch.dtype):
    """To each dtype and back, every bit as torch has it."""
    x = numbers()
    narrow, back = torch.empty(4096, dtype=dtype), torch.empty(4096)
    _cast[(1,)](x, narrow, N=4096)
    _cast[(1,)](narrow, back, N=4096)
    assert torch.equal(back, x.to(dtype).float())


def test_an_fp8_cast_saturates():
    """As the hardware's does; torch would give NaN."""
    narrow = torch.empty(2, dtype=torch.float8_e4m3fn)
    _cast[(1,)](torch.tensor([1e6, -1e6]), narrow, N=2)
    assert narrow.float().tolist() == [448.0, -448.0]


def test_a_dot_of_bf16_multiplies_numbers_and_adds_in_fp32():
    """Not their codes; the sum is that of fp32."""
    a, b = (torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (1, 2))
    out = torch.empty(32, 32)
    _dot[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out, a.float() @ b.float(), atol=1e-5, rtol=1e-5)


def test_arithmetic_on_bf16_is_refused():
    """It would add codes: a kernel casts to fp32 first."""
    with pytest.raises(Exception, match="cast to float32 first"):
        _sum[(1,)](torch.ones(4, dtype=torch.bfloat16), torch.empty(4, dtype=torch.bfloat16), N=4)
