"""Linear: the product, packed or not; in the fixed order each row by itself."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu.product import has_product
from kernels.linear import Linear, can_pack, in_blocks

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


def test_deterministic_mode_refuses_a_dtype_without_such_a_product():
    """fp16 isn't packed: the message says which dtypes are."""
    with pytest.raises(ValueError, match=r"bfloat16 or float32 .* got torch\.float16"):
        Linear(torch.zeros(4, 4, dtype=torch.float16), deterministic=True)


def test_in_blocks_of_one_size_a_row_has_the_same_bits_wherever_it_stands():
    """What a GPU does in deterministic mode: alone, at the end of another block, among 150."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 80, generator=generator), torch.randn(48, generator=generator)
    x = torch.randn(150, 80, generator=generator)
    whole = in_blocks(x, weight, bias)
    torch.testing.assert_close(whole, torch.nn.functional.linear(x, weight, bias))
    for at in (0, 63, 64, 149):
        assert torch.equal(in_blocks(x[at : at + 1], weight, bias)[0], whole[at])
    assert in_blocks(x[:0], weight, None).shape == (0, 48)
