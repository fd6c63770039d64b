"""Linear: the product, packed or not; in the fixed order each row by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.cpu.product import has_product
from kernels.linear import Linear, can_pack, int8_refused
from kernels.plain_linear import plain_linear_torch
from kernels.table import Backend
from tests.kernels.backends import ops_or_skip

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
# A sum of 100 products, each at most about 10, in fp32; and the rounding of sums of up to 40 to the dtype.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


def tensors(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


@DTYPES
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_linear_is_the_product_and_the_bias(dtype: torch.dtype, with_bias: bool):
    """For one row and many, and widths that are no multiple of anything."""
    for rows, K, N in ((1, 64, 96), (7, 100, 63), (130, 80, 257), (3, 33, 16), (100, 2, 5)):
        x, weight, bias = tensors(rows, K, N, dtype)
        expected = x.double() @ weight.double().T + (bias.double() if with_bias else 0.0)
        ours = Linear(weight.clone(), bias if with_bias else None)(x)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_in_the_fixed_order_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype):
    """Among one to 599 others, with one to three threads."""
    if not can_pack(CPU, dtype):
        pytest.skip(f"this CPU packs no {dtype}, so deterministic mode refuses it")
    for K, N in ((64, 96), (172, 64), (512, 300)):
        x, weight, bias = tensors(600, K, N, dtype)
        linear = Linear(weight, bias, deterministic=True)
        whole = linear(x)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for start, stop in ((0, 2), (598, 600), (3, 5), (1, 8), (17, 34), (0, 64), (100, 229), (1, 600)):
                assert torch.equal(linear(x[start:stop].contiguous()), whole[start:stop]), (K, N, threads, start, stop)
        torch.set_num_threads(1)


def test_a_product_in_c_gives_a_lone_row_the_same_bits():
    """Where bf16 products are done in C, one row is as good as many; and nothing is written past the last column."""
    x, weight, bias = tensors(13, 96, 77, torch.bfloat16)
    if not has_product(weight):
        pytest.skip("no bf16 product in C here: no compiler, or a CPU without AVX512-BF16 or with AMX")
    linear = Linear(weight, bias, deterministic=True)
    whole = linear(x)
    assert torch.equal(torch.cat([linear(row.unsqueeze(0)) for row in x]), whole)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def narrow_dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each dtype that has products with int8 weights here."""
    dtype: torch.dtype = request.param
    if refused := int8_refused(CPU, dtype, ()):
        pytest.skip(refused)
    return dtype


def as_codes(x: torch.Tensor, together: int) -> torch.Tensor:
    """x [rows, K] as int8 codes times their scales, fp64: one scale for every `together` columns of a row."""
    parts = torch.nn.functional.pad(x.double(), (0, -x.shape[1] % together)).unflatten(1, (-1, together))
    scales = parts.abs().amax(-1, keepdim=True) / 127
    codes = (parts / scales.masked_fill(scales == 0, 1.0)).round()
    return (codes * scales).flatten(1)[:, : x.shape[1]]


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_an_int8_product_is_that_of_the_codes(narrow_dtype: torch.dtype, with_bias: bool):
    """A scale for each output, and for every 128 inputs of a row; for one row and many, and blocks that are short."""
    for rows, K, N in ((1, 64, 96), (7, 400, 63), (130, 144, 257), (3, 1040, 16), (100, 16, 5), (97, 128, 64)):
        x, weight, bias = tensors(rows, K, N, narrow_dtype)
        x[0, 0], weight[0] = 40.0, 0.0
        expected = as_codes(x, 128) @ as_codes(weight, K).T + (bias.double() if with_bias else 0.0)
        ours = Linear(weight.clone(), bias if with_bias else None, weights="int8")(x)
        assert ours.dtype == narrow_dtype
        # A code is one more or less where the quotient, in fp32, falls on the other side of a half.
        error = (ours.double() - expected).abs()
        assert error.mean() < 2.0**-7 * expected.abs().mean()
        assert error.max() < 2.0**-7 * expected.abs().max() + x.abs().amax() * weight.abs().amax() / 100


def test_an_int8_product_has_the_same_bits_in_any_company(narrow_dtype: torch.dtype):
    """Alone, among one to 599 others, with one to three threads."""
    for K, N in ((64, 96), (176, 64), (512, 300)):
        x, weight, bias = tensors(600, K, N, narrow_dtype)
        linear = Linear(weight, bias, deterministic=True, weights="int8")
        whole = linear(x)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for start, stop in ((0, 1), (0, 2), (598, 600), (3, 5), (17, 34), (0, 64), (100, 229), (1, 600)):
                assert torch.equal(linear(x[start:stop].contiguous()), whole[start:stop]), (K, N, threads, start, stop)
        torch.set_num_threads(1)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_number_after_an_int8_product(narrow_dtype: torch.dtype, broken: float):
    """In its own row alone: it is not rounded to some code."""
    x, weight, _ = tensors(9, 160, 48, narrow_dtype)
    linear = Linear(weight, weights="int8")
    whole = linear(x)
    x[4, 150] = broken
    got = linear(x)
    assert not got[4].isfinite().any()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(got[others], whole[others])


def test_where_int8_weights_have_no_product_it_is_said_why():
    """The dtype, the device, or the inputs."""
    assert "not for torch.float16" in str(int8_refused(CPU, torch.float16, ()))
    assert "on meta" in str(int8_refused(torch.device("meta"), torch.float32, ()))
    if int8_refused(CPU, torch.float32, ()) is None:
        assert "multiples of 16; got 100" in str(int8_refused(CPU, torch.float32, (64, 100)))


def test_deterministic_mode_refuses_a_dtype_without_such_a_product():
    """fp16 isn't packed: the message says which dtypes are."""
    with pytest.raises(ValueError, match=r"bfloat16 or float32 .* got torch\.float16"):
        Linear(torch.zeros(4, 4, dtype=torch.float16), deterministic=True)


def test_in_the_fixed_order_a_row_of_the_reference_has_the_same_bits_wherever_it_stands():
    """In blocks of one size: alone, at the end of another block, among 150; into a tensor that is given."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 80, generator=generator), torch.randn(48, generator=generator)
    x = torch.randn(150, 80, generator=generator)
    whole = plain_linear_torch(x, weight, bias, fixed=True)
    torch.testing.assert_close(whole, torch.nn.functional.linear(x, weight, bias))
    for at in (0, 63, 64, 149):
        out = torch.empty(1, 48)
        assert plain_linear_torch(x[at : at + 1], weight, bias, out=out, fixed=True) is out
        assert torch.equal(out[0], whole[at])
    assert plain_linear_torch(x[:0], weight, fixed=True).shape == (0, 48)


@pytest.mark.parametrize(("N", "K"), [(128, 1024), (192, 384)], ids=["two segments", "one segment"])
def test_in_the_fixed_order_triton_gives_a_row_the_same_bits_wherever_it_stands(N: int, K: int):
    """bf16: alone and among 16, which go in the same tiles; more rows go in larger ones, which only hardware can hold
    against these to the bit. Rows beyond are not read, and a weight it doesn't take goes through the reference."""
    ops = ops_or_skip(Backend.TRITON)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((65, K), (N, K), (N,)))
    exact = F.linear(x.double(), weight.double(), bias.double())
    for rows in (1, 16, 64, 65):
        got = ops.plain_linear(x[:rows], weight, bias, fixed=True)
        torch.testing.assert_close(got.double(), exact[:rows], rtol=2.0**-8, atol=2.0**-6)
    whole = ops.plain_linear(x[:16], weight, bias, fixed=True)
    for at in (0, 7, 15):
        assert torch.equal(ops.plain_linear(x[at : at + 1], weight, bias, fixed=True)[0], whole[at])
    odd = ops.plain_linear(x[:3, :80], weight[:, :80].contiguous(), fixed=True)
    assert torch.equal(odd, plain_linear_torch(x[:3, :80], weight[:, :80].contiguous(), fixed=True))


@pytest.mark.parametrize("K", [16, 1024, 1040])
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_alone_is_multiplied_by_triton_as_among_others(K: int, bias: bool):
    """bf16: the products of one row have a kernel of their own, which sums in fp32; others are the library's."""
    ops = ops_or_skip(Backend.TRITON)
    generator = torch.Generator().manual_seed(K)
    x, weight, beside = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((3, K), (48, K), (48,)))
    given = beside if bias else None
    expected = F.linear(x.double(), weight.double(), None if given is None else given.double())
    for rows in (x[:1], x):
        got = ops.plain_linear(rows, weight, given)
        torch.testing.assert_close(got.double(), expected[: len(rows)], rtol=2.0**-8, atol=2.0**-6)
        out = torch.empty_like(got)
        assert ops.plain_linear(rows, weight, given, out=out) is out
        assert torch.equal(out, got)


def test_few_rows_of_a_wide_product_are_each_by_itself():
    """9 to 16 rows of 16,896 outputs, where Triton's tile takes over from the library: rows beyond T are not read."""
    ops = ops_or_skip(Backend.TRITON)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((17, 256), (16896, 256), (16896,))
    )
    expected = F.linear(x.double(), weight.double(), bias.double())
    for T in (8, 9, 16, 17):
        got = ops.plain_linear(x[:T], weight, bias)
        torch.testing.assert_close(got.double(), expected[:T], rtol=2.0**-8, atol=2.0**-6)
