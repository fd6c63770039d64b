"""RMSNorm, SiLU-mul, the rotation with its K/V write, and gathering: right to rounding, and each row by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.table import Ops
from tests.kernels.conftest import OpsFor, examples, interpreted

# Up to three roundings of values up to 4 on the way, each by half of bf16's unit in the last place, 2^-6 there.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2.0**-6}

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
widths = st.integers(1, 20).map(lambda vectors: 16 * vectors)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_right(ours: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)


def norm_in_fp64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def test_rms_norm_is_the_formula(ops_of: OpsFor):
    """With and without a residual, which holds the sum afterwards; epsilon counts where values are small."""

    @examples(ops_of, 25)
    @given(dtypes, st.integers(1, 9), widths, st.booleans(), st.sampled_from([1.0, 1e-3]))
    def check(dtype: torch.dtype, rows: int, width: int, with_residual: bool, size: float) -> None:
        x, weight = normal(rows, width, dtype=dtype) * size, normal(width, seed=1, dtype=dtype)
        residual = normal(rows, width, seed=2, dtype=dtype) * size if with_residual else None
        total = x if residual is None else x + residual
        ours = ops_of(dtype).rms_norm(x.clone(), weight, 1e-5, residual=residual)
        assert_right(ours, norm_in_fp64(total, weight, 1e-5))
        if residual is not None:
            assert torch.equal(residual, total)

    check()


def test_silu_mul_is_the_formula(ops_of: OpsFor):
    """Gate in the first half, up in the second; also where the exponential overflows."""

    @examples(ops_of, 25)
    @given(dtypes, st.integers(1, 9), widths, st.sampled_from([1.0, 60.0]))
    def check(dtype: torch.dtype, rows: int, width: int, size: float) -> None:
        gate, up = normal(rows, width, dtype=dtype) * size, normal(rows, width, seed=1, dtype=dtype)
        ours = ops_of(dtype).silu_mul(torch.cat([gate, up], -1))
        wide = gate.double()
        assert_right(ours, wide * wide.sigmoid() * up.double())

    check()


def test_gelu_mul_is_the_formula(ops_of: OpsFor):
    """As SiLU's, with the tanh formula of GELU."""

    @examples(ops_of, 25)
    @given(dtypes, st.integers(1, 9), widths, st.sampled_from([1.0, 60.0]))
    def check(dtype: torch.dtype, rows: int, width: int, size: float) -> None:
        gate, up = normal(rows, width, dtype=dtype) * size, normal(rows, width, seed=1, dtype=dtype)
        ours = ops_of(dtype).gelu_mul(torch.cat([gate, up], -1))
        assert_right(ours, torch.nn.functional.gelu(gate.double(), approximate="tanh") * up.double())

    check()


@st.composite
def turns(draw: st.DrawFn) -> tuple[torch.dtype, int, int, int, int, int, bool]:
    """dtype, tokens, query heads, key heads, elements a head, tokens a page, whether heads are normed."""
    kv_heads = draw(st.integers(1, 3))
    return (
        draw(dtypes),
        draw(st.integers(1, 40)),
        kv_heads * draw(st.integers(1, 4)),
        kv_heads,
        draw(st.sampled_from([16, 64, 80, 96, 128])),
        draw(st.sampled_from([16, 32, 64])),
        draw(st.booleans()),
    )


def test_norm_rope_write_is_the_formula(ops_of: OpsFor):
    """q comes back rotated; K rotated and V as it is lie in their slots, and every other slot is left alone."""

    @examples(ops_of, 25)
    @given(turns())
    def check(case: tuple[torch.dtype, int, int, int, int, int, bool]) -> None:
        dtype, T, heads, kv_heads, D, page_size, normed = case
        qkv = normal(T, (heads + 2 * kv_heads) * D, dtype=dtype)
        pages = T // page_size + 2
        kv = torch.full((pages, 2, kv_heads, page_size, D), float("nan"), dtype=dtype)
        generator = torch.Generator().manual_seed(3)
        positions = torch.randint(0, 100, (T,), generator=generator)
        slots = torch.randperm(pages * page_size, generator=generator)[:T]
        slots[T // 2] = -1  # padding
        angles = normal(100, D // 2, seed=4)
        weights = [normal(D, seed=seed, dtype=dtype) if normed else None for seed in (5, 6)]
        q = ops_of(dtype).norm_rope_write(
            qkv,
            kv,
            positions,
            slots,
            torch.cat([angles.cos(), angles.sin()], -1),
            q_norm=weights[0],
            k_norm=weights[1],
            eps=1e-6,
        )
        parts = qkv.view(T, -1, D).split([heads, kv_heads, kv_heads], 1)
        turned = [
            rotated_in_fp64(x.double() if w is None else norm_in_fp64(x, w, 1e-6), angles[positions].double())
            for x, w in zip(parts[:2], weights, strict=True)
        ]
        assert_right(q, turned[0])
        flat = kv.permute(0, 3, 1, 2, 4).reshape(-1, 2, kv_heads, D)  # by slot
        real = slots >= 0
        assert_right(flat[slots[real], 0], turned[1][real])
        assert torch.equal(flat[slots[real], 1], parts[2][real])
        untouched = torch.ones(len(flat), dtype=torch.bool)
        untouched[slots[real]] = False
        assert flat[untouched].isnan().all()

    check()


def rotated_in_fp64(x: Tensor, angles: Tensor) -> Tensor:
    """x [T, H, D] with its halves turned as the real and imaginary part of a number, by angles [T, D/2]."""
    whole = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    return torch.cat([whole.real, whole.imag], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_are_gathered_in_the_order_asked_for_and_normed_as_by_themselves(ops_of: OpsFor, dtype: torch.dtype):
    """Out of order, twice, or none; alone or added to another's, whose rows and whose own stay as they were."""
    ops, x, other = ops_of(dtype), normal(9, 48, dtype=dtype), normal(9, 48, seed=2, dtype=dtype)
    weight = normal(48, seed=1, dtype=dtype)
    for index in ([8, 0, 0, 3], []):
        for residual, total in ((None, x), (other, x + other)):
            rows, out = ops.gather_rms_norm(x, torch.tensor(index, dtype=torch.int64), weight, 1e-5, residual)
            assert torch.equal(rows, total[index])
            assert torch.equal(out, ops.rms_norm(total[index], weight, 1e-5))
    assert torch.equal(x, normal(9, 48, dtype=dtype))
    assert torch.equal(other, normal(9, 48, seed=2, dtype=dtype))


def _rms_norm(ops: Ops, x: Tensor) -> Tensor:
    return ops.rms_norm(x.clone(), normal(x.shape[1], seed=1, dtype=x.dtype), 1e-5, residual=x.flip(1).contiguous())


def _silu_mul(ops: Ops, x: Tensor) -> Tensor:
    return ops.silu_mul(x.clone())


def _norm_rope_write(ops: Ops, x: Tensor) -> Tensor:
    """The rotated query heads and, beside them, what was written; all of one head size that divides every width."""
    D, T = 16, x.shape[0]
    kv_heads = x.shape[1] // D // 4
    kv = torch.zeros(T // 16 + 1, 2, kv_heads, 16, D, dtype=x.dtype)
    weight, slots = normal(D, seed=2, dtype=x.dtype), torch.arange(T)
    q = ops.norm_rope_write(x, kv, slots % 7, slots, normal(7, D, seed=3), q_norm=weight, k_norm=weight, eps=1e-5)
    return torch.cat([q.flatten(1), kv.permute(0, 3, 1, 2, 4).flatten(0, 1)[:T].flatten(1)], 1)


@pytest.mark.parametrize("operation", [_rms_norm, _silu_mul, _norm_rope_write])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_has_the_same_bits_in_any_company(
    ops_of: OpsFor, operation: Callable[[Ops, Tensor], Tensor], dtype: torch.dtype
):
    """Among up to 300 others, with one to three threads, also where there is enough work to share among them."""
    ops = ops_of(dtype)
    slow = interpreted(ops)  # and has one thread a row
    for width in (64, 352) if slow else (64, 352, 2112):
        x = normal(15 if slow else 301, width, dtype=dtype) * 3
        whole = operation(ops, x)
        for threads in (1,) if slow else (1, 2, 3):
            torch.set_num_threads(threads)
            for rows in (1, 2, 7) if slow else (1, 2, 3, 7, 64, 299, 301):
                assert torch.equal(operation(ops, x[:rows].contiguous()), whole[:rows]), (width, threads, rows)
        torch.set_num_threads(1)
