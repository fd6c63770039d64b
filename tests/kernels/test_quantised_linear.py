"""Products with weights of 8 and 4 bits: the formula, the layouts of GPTQ and AWQ, and each row by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gpu.architectures import WEIGHT_ROWS, Architecture
from kernels.gpu.quantised_linear import whole_weight
from kernels.quantised_linear import QuantisedWeight, _packed
from kernels.table import Backend, ops_for
from ops.bench.crossover import CARDS, most_rows
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


def packed_along(codes: Tensor, bits: int, order: list[int]) -> Tensor:
    """[R, C] codes -> [R, C * bits / 32] int32, field i of a word being column order[i] of those it holds."""
    each = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // each, dtype=torch.int64)
    for field, column in enumerate(order):
        words |= codes[:, column::each].long() << (bits * field)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([4, 8]),
    st.sampled_from([(32, 32), (64, 32), (96, 32), (128, 64), (64, 64)]),
    st.sampled_from([8, 16, 40]),
    st.booleans(),
    st.integers(0, 1),
)
def test_what_gptq_and_awq_pack_is_unpacked(
    seed: int, bits: int, inputs: tuple[int, int], N: int, shuffled: bool, less: int
):
    """Any codes and zeros, each written in its own layout by loops over fields here: the weight they stand for, in its
    own order of inputs, whole and as three parts side by side."""
    K, group = inputs
    drawn = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (K, N), generator=drawn)
    zeros = torch.randint(less, 1 << bits, (K // group, N), generator=drawn)
    scales = torch.rand(K // group, N, generator=drawn) + 0.5
    g_idx = torch.arange(K) // group
    g_idx = g_idx[torch.randperm(K, generator=drawn)] if shuffled else g_idx
    expected = (codes - zeros[g_idx]) * scales[g_idx]
    plain = list(range(32 // bits))

    def gptq(columns: slice) -> QuantisedWeight:
        packed = packed_along(codes[:, columns].t(), bits, plain).t()
        packed_zeros = packed_along(zeros[:, columns] - less, bits, plain)
        return QuantisedWeight.from_gptq(packed, packed_zeros, scales[:, columns], g_idx.int(), bits=bits, less=less)

    torch.testing.assert_close(gptq(slice(0, N)).whole(), expected)
    third = 8 * max(1, N // 24)
    parts = [gptq(slice(at, at + third)) for at in range(0, N, third)]
    torch.testing.assert_close(QuantisedWeight.beside(parts).whole(), expected)
    if bits == 4 and not shuffled:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        awq = QuantisedWeight.from_awq(packed_along(codes, 4, order), packed_along(zeros, 4, order), scales)
        torch.testing.assert_close(awq.whole(), expected)


def test_inputs_in_another_order_are_multiplied_in_theirs(ops_of: OpsFor):
    """GPTQ's act-order, on every backend: few rows as codes, many written out."""
    K, N = 64, 48
    order = torch.randperm(K, generator=torch.Generator().manual_seed(3))
    made = QuantisedWeight.of(normal(N, K), 4, 32)
    weight = QuantisedWeight(made.codes, made.scales, made.zeros, 4, order)
    for rows in (3, 300):
        x = normal(rows, K, seed=1)
        out = ops_of(torch.float32).quantised_linear(x, weight)
        torch.testing.assert_close(out, x[:, order] @ made.whole(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out, x @ weight.whole(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_many_rows_are_multiplied_with_the_weight_written_out(bits: int):
    """In Triton, past the table's number of rows: the same product, and no more of the codes' kernel."""
    ops, most = ops_for(Backend.TRITON), WEIGHT_ROWS[Architecture.SM_80][bits]
    weight = QuantisedWeight.of(normal(130, 96).bfloat16(), bits, 32)
    torch.testing.assert_close(whole_weight(weight, torch.bfloat16), weight.whole(), atol=0, rtol=0)
    x, bias = normal(most + 1, 96, seed=1).bfloat16(), normal(130, seed=2).bfloat16()
    expected = x.float() @ weight.whole().float() + bias.float()
    for rows in (most, most + 1):
        got = ops.quantised_linear(x[:rows], weight, bias)
        torch.testing.assert_close(got.float(), expected[:rows], atol=2.0**-3, rtol=2.0**-6)


def test_the_table_of_rows_is_what_is_counted():
    """Bytes and operations of each architecture's largest card say from where on writing out pays."""
    assert {kind: {bits: most_rows(card, bits) for bits in (4, 8)} for kind, card in CARDS.items()} == WEIGHT_ROWS


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_becomes_its_number_at_its_place(bits: int, zeros: bool):
    """In Triton, bf16, groups of 128 or a scale an output: the identity brings each code less its zero back."""
    drawn = torch.Generator().manual_seed(bits)
    group, low = 128 if zeros else 256, -128 if bits == 8 else 0
    codes = torch.randint(low, low + (1 << bits), (256, 130), generator=drawn, dtype=torch.int32)
    codes[:, 0] = torch.arange(256) % (1 << bits) + low
    zero = torch.randint(low, low + (1 << bits) + 1, (256 // group, 130), generator=drawn).bfloat16() * zeros
    scales = (torch.arange(256 // group).view(-1, 1) + torch.ones(130)).bfloat16()  # 1, and of a second group 2
    weight = QuantisedWeight(_packed(codes, bits, group), scales, zero if zeros else None, bits)
    expected = (codes - zero.float().repeat_interleave(group, 0)) * scales.float().repeat_interleave(group, 0)
    assert torch.equal(weight.whole(torch.float32), expected)
    eye = torch.eye(256).bfloat16()
    for rows in (slice(120, 136), slice(96, 160)):
        assert torch.equal(ops_for(Backend.TRITON).quantised_linear(eye[rows], weight).float(), expected[rows])


@pytest.mark.parametrize(("dtype", "group"), [(torch.float32, 64), (torch.bfloat16, 128)])
def test_in_the_fixed_order_a_row_has_the_same_bits_among_any_number(dtype: torch.dtype, group: int):
    """In Triton, alone, among few and among more than are written out otherwise: how sums are split does not depend on
    the batch."""
    ops = ops_for(Backend.TRITON)
    x, weight = normal(70, 1024).to(dtype), QuantisedWeight.of(normal(70, 1024, seed=1).to(dtype), 4, group)
    whole = ops.quantised_linear(x, weight, fixed=True)
    for rows in (1, 2, 17):
        assert torch.equal(ops.quantised_linear(x[:rows], weight, fixed=True), whole[:rows])


def test_groups_that_do_not_fit_are_refused():
    """By their size and what they must divide; an order that gives groups unlike numbers of inputs; unlike parts."""
    with pytest.raises(ValueError, match="divide the 100 inputs"):
        QuantisedWeight.of(torch.zeros(4, 100), 4, 64)
    zeros = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="g_idx does not give 32 inputs to each of 2 groups"):
        QuantisedWeight.from_gptq(torch.zeros(8, 8, dtype=torch.int32), zeros, torch.ones(2, 8), torch.zeros(64).int())
    four, eight = (QuantisedWeight.of(torch.zeros(8, 64), bits, 64) for bits in (4, 8))
    with pytest.raises(ValueError, match="differ in bits"):
        QuantisedWeight.beside([four, eight])
