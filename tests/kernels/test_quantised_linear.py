"""Products with weights of 8 and 4 bits: the formula, the layouts of GPTQ and AWQ, and each row by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.quantised_linear import QuantisedWeight
from kernels.table import Backend, ops_for
from tests.kernels.conftest import OpsFor, examples

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 2.0**-6}  # sums of up to 512 products; bf16's rounding of sums


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_quantised_product_is_the_formula(ops_of: OpsFor):
    """Over odd widths and row counts, with and without bias, of both widths of code, in groups and as a whole."""

    @examples(ops_of, 24)
    @given(
        st.sampled_from([torch.float32, torch.bfloat16]),
        st.sampled_from([1, 2, 16, 17, 70]),
        st.sampled_from([(64, 32), (512, 128), (192, 64), (96, 96)]),
        st.sampled_from([16, 63, 130]),
        st.sampled_from([4, 8]),
        st.booleans(),
    )
    def check(dtype: torch.dtype, rows: int, inputs: tuple[int, int], outputs: int, bits: int, with_bias: bool) -> None:
        K, group = inputs
        x, bias = normal(rows, K).to(dtype), normal(outputs, seed=1).to(dtype) if with_bias else None
        weight = QuantisedWeight.of(normal(outputs, K, seed=2).to(dtype), bits, group)
        expected = x.double() @ weight.whole().double() + (0 if bias is None else bias.double())
        out = torch.full((rows, outputs), float("nan"), dtype=dtype)
        assert ops_of(dtype).quantised_linear(x, weight, bias, out=out) is out
        torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype] * 8, rtol=TOLERANCE[dtype])

    check()


@pytest.mark.parametrize(("bits", "steps"), [(8, 254), (4, 15)])
def test_a_weight_differs_from_its_codes_by_half_a_step(bits: int, steps: int):
    """A step being a group's range over the number of codes."""
    weight = normal(40, 256)
    error = (QuantisedWeight.of(weight, bits, 64).whole().t() - weight).abs().view(40, 4, 64).amax(-1)
    parts = weight.view(40, 4, 64)
    reach = 2 * parts.abs().amax(-1) if bits == 8 else parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)
    assert (error <= reach / steps * (0.501 if bits == 8 else 1.001)).all()  # 4 bits: the zero is rounded too


def packed_along(codes: Tensor, order: list[int]) -> Tensor:
    """[K, N] codes -> [K, N / 8] int32, nibble i of a word being column order[i] of its eight."""
    words = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for nibble, column in enumerate(order):
        words |= codes[:, column::8].long() << (4 * nibble)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def test_checkpoints_of_gptq_and_awq_give_the_same_weight():
    """Each written in its own layout by loops over nibbles here, and read back."""
    K, N, group = 64, 16, 32
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (K, N), generator=generator)
    zeros = torch.randint(1, 16, (K // group, N), generator=generator)
    scales = normal(K // group, N, seed=1).abs()
    parts = (codes.view(K // group, group, N) - zeros.unsqueeze(1)) * scales.unsqueeze(1)
    plain, awq_order = list(range(8)), [0, 2, 4, 6, 1, 3, 5, 7]
    gptq = QuantisedWeight.from_gptq(
        packed_along(codes.t().contiguous(), plain).t(), packed_along(zeros - 1, plain), scales
    )
    awq = QuantisedWeight.from_awq(packed_along(codes, awq_order), packed_along(zeros, awq_order), scales)
    for weight in (gptq, awq):
        torch.testing.assert_close(weight.whole(), parts.view(K, N))


def test_a_row_has_the_same_bits_among_up_to_64_rows():
    """In Triton, alone, among few and among many: how sums are split does not depend on the batch."""
    ops = ops_for(Backend.TRITON)
    x, weight = normal(64, 1024).bfloat16(), QuantisedWeight.of(normal(70, 1024, seed=1).bfloat16(), 4, 64)
    whole = ops.quantised_linear(x, weight)
    for rows in (1, 2, 17):
        assert torch.equal(ops.quantised_linear(x[:rows], weight), whole[:rows])


def test_groups_that_do_not_fit_are_refused():
    """By their size and what they must divide."""
    with pytest.raises(ValueError, match="divide the 100 inputs"):
        QuantisedWeight.of(torch.zeros(4, 100), 4, 64)
