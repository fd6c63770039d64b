"""Products in FP8: the formula, rows rounded alike on every backend, and AMD's numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.fp8_linear import Fp8Weight, quantised_rows_torch
from kernels.gpu.fp8_linear import quantised_rows
from kernels.table import Backend, ops_for
from tests.kernels.conftest import OpsFor, examples


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_fp8_product_is_the_formula(ops_of: OpsFor):
    """Of rows and weights as they are once rounded, in fp64: what is left is bf16's own rounding."""

    @examples(ops_of, 16)
    @given(st.sampled_from([1, 2, 17, 70]), st.sampled_from([16, 64, 208]), st.sampled_from([16, 80]), st.booleans())
    def check(rows: int, K: int, N: int, with_bias: bool) -> None:
        x, weight = normal(rows, K).bfloat16(), Fp8Weight.of(normal(N, K, seed=1).bfloat16())
        bias = normal(N, seed=2).bfloat16() if with_bias else None
        codes, scales = quantised_rows_torch(x, weight.codes.dtype)
        expected = codes.double() * scales @ weight.whole(torch.float64).t() + (0 if bias is None else bias.double())
        got = ops_of(torch.bfloat16).fp8_linear(x, weight, bias)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, atol=2.0**-6, rtol=2.0**-7)

    check()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@pytest.mark.parametrize("K", [16, 4096, 5000])
def test_rows_are_rounded_to_the_same_codes(dtype: torch.dtype, K: int):
    """In Triton as in torch, rows of zeros and of great numbers among them; a row with no number has none."""
    ops_for(Backend.TRITON)  # which makes the interpreter exact
    x = normal(4, K).bfloat16()
    x[1], x[2] = 0, x[2] * 1e30
    x[3, K // 2] = float("nan")
    codes, scales = quantised_rows(x, dtype)
    expected, expected_scales = quantised_rows_torch(x, dtype)
    assert torch.equal(codes[:3].view(torch.uint8), expected[:3].view(torch.uint8))
    torch.testing.assert_close(scales[:3], expected_scales[:3], atol=0, rtol=2e-7)
    assert codes[3].float().isnan().any()


def test_a_weight_differs_from_its_codes_by_a_sixteenth_at_most():
    """Three bits of mantissa, and half a step; what is far below its row's greatest by less than a step of that."""
    weight = normal(40, 256)
    error = (Fp8Weight.of(weight).whole(torch.float32) - weight).abs()
    floor = weight.abs().amax(1, keepdim=True) / 448 * 2.0**-10
    assert (error <= torch.maximum(weight.abs() / 16, floor) * 1.001).all()


def test_amds_numbers_stand_for_the_same_weight():
    """Every code that is a number, -0 too."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[codes.float().isfinite()].reshape(2, -1)
    weight = Fp8Weight(codes, torch.tensor([0.5, 3.0]))
    assert torch.equal(weight.as_fnuz().whole(torch.float32), weight.whole(torch.float32))


def test_in_the_fixed_order_a_row_has_the_same_bits_among_any_number(ops_of: OpsFor):
    """In blocks of one size, the last one padded."""
    ops = ops_of(torch.bfloat16)
    x, weight = normal(70, 64).bfloat16(), Fp8Weight.of(normal(48, 64, seed=1).bfloat16())
    whole = ops.fp8_linear(x, weight, fixed=True)
    for rows in (1, 5, 64):
        assert torch.equal(ops.fp8_linear(x[:rows].contiguous(), weight, fixed=True), whole[:rows])


def test_no_rows_give_none():
    """As every operation."""
    weight = Fp8Weight.of(normal(48, 64))
    assert ops_for(Backend.TORCH).fp8_linear(normal(0, 64), weight).shape == (0, 48)
