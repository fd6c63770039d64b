"""Attention over pages: right to rounding for every shape, and in the fixed order the same bits in any company."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.paged_attention import KEY_BLOCK
from kernels.table import Backend, Ops, ops_for
from tests.kernels.conftest import OpsFor, examples, interpreted
from tests.kernels.paged import Row, Shape, Text, attention_in_fp64, run_attention

# Half a unit in the last place, of outputs up to 4 and of the softmax weights; and sums of a thousand fp32 products.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}

shapes = st.builds(
    Shape,
    group=st.integers(1, 16),
    kv_heads=st.integers(1, 3),
    D=st.sampled_from([64, 80, 96, 128]),
    page_size=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


def lengths(shape: Shape) -> st.SearchStrategy[int]:
    """One, about a page, about many pages, about the 512 keys that a C work item takes, and anything between."""
    page = shape.page_size
    edges = [1, page - 1, page, page + 1, 5 * page, 5 * page + 1, 511, 512, 513]
    return st.sampled_from(edges) | st.integers(1, 600)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Shape, list[Row], list[Row], dict[str, Any], bool]:
    """A shape, decode rows, prefill rows (with and without a prefix), scale, window and soft-cap, and whether the
    device alone knows how many rows are which."""
    shape = draw(shapes)
    seeds = iter(range(100))

    def row(seq_len: int, query_len: int) -> Row:
        return Row(Text.random(shape, seq_len, next(seeds)), seq_len, query_len)

    decode = [row(length, 1) for length in draw(st.lists(lengths(shape), max_size=4))]
    prefill = []
    for length in draw(st.lists(lengths(shape), min_size=not decode, max_size=3)):
        prefill.append(row(length, draw(st.integers(1, min(length, 80)) | st.just(min(length, 80)))))
    how = {
        "scale": draw(st.sampled_from([shape.D**-0.5, 0.3])),
        "window": draw(st.none() | st.sampled_from([1, 2, shape.page_size, 100])),
        "soft_cap": draw(st.none() | st.sampled_from([2.0, 30.0])),
    }
    return shape, decode, prefill, how, draw(st.booleans())


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
def test_attention_is_the_formula(ops_of: OpsFor, deterministic: bool):
    """Of any shape, lengths, window and soft-cap, decode and prefill together; NaN where no row wrote stays unseen."""

    @examples(ops_of, 30)
    @given(batches())
    def check(case: tuple[Shape, list[Row], list[Row], dict[str, Any], bool]) -> None:
        shape, decode, prefill, how, counted = case
        ops = ops_of(shape.dtype)
        counted = counted and ops.backend is not Backend.C  # which counts in prepare_batch
        got = run_attention(ops, shape, decode, prefill, deterministic=deterministic, counted=counted, **how)
        for row, ours in zip([*decode, *prefill], got, strict=True):
            torch.testing.assert_close(
                ours.double(),
                attention_in_fp64(row, **how),
                atol=TOLERANCE[shape.dtype],
                rtol=TOLERANCE[shape.dtype],
            )

    check()


def test_attention_over_int8_pages_is_the_formula(ops_of: OpsFor):
    """Over codes times their scales, of any shape and lengths; codes and scales where no row wrote stay unseen."""

    @examples(ops_of, 20)
    @given(batches())
    def check(case: tuple[Shape, list[Row], list[Row], dict[str, Any], bool]) -> None:
        shape, decode, prefill, how, counted = case
        decode, prefill = ([replace(row, text=row.text.narrow()) for row in rows] for rows in (decode, prefill))
        ops = ops_of(shape.dtype)
        got = run_attention(ops, shape, decode, prefill, counted=counted and ops.backend is not Backend.C, **how)
        for row, ours in zip([*decode, *prefill], got, strict=True):
            tolerance = TOLERANCE[shape.dtype]
            torch.testing.assert_close(ours.double(), attention_in_fp64(row, **how), atol=tolerance, rtol=tolerance)

    check()


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
@pytest.mark.parametrize("query_len", [1, 3])
def test_what_a_short_row_left_unwritten_in_its_page_stays_unseen(ops_of: OpsFor, query_len: int, deterministic: bool):
    """A row of five tokens, padded to the pages of a longer neighbour, reads nothing past its end."""
    shape = Shape()
    rows = [Row(Text.random(shape, length, length), length, query_len) for length in (5, 5 + 3 * shape.page_size)]
    decode, prefill = (rows, []) if query_len == 1 else ([], rows)
    got = run_attention(ops_of(shape.dtype), shape, decode, prefill, deterministic=deterministic, scale=0.125)
    for row, ours in zip(rows, got, strict=True):
        torch.testing.assert_close(ours.double(), attention_in_fp64(row, scale=0.125), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("page_size", [48, 128])
def test_pages_need_not_divide_a_kernels_tile_of_keys(ops_of: OpsFor, page_size: int):
    """Nor a tile a page: whatever number of tokens a page holds, a chunk sees its prefix and itself."""
    shape = Shape(page_size=page_size)
    row = Row(Text.random(shape, 200, 1), 200, 40)
    (ours,) = run_attention(ops_of(shape.dtype), shape, [], [row], scale=0.125)
    torch.testing.assert_close(ours.double(), attention_in_fp64(row, scale=0.125), atol=1e-5, rtol=1e-5)


def test_a_row_of_nan_leaves_its_neighbours_alone(ops_of: OpsFor):
    """Where one row's keys and values are NaN, that row is NaN and the others are what they would be without it."""
    shape = Shape()
    broken = Text.random(shape, 90, 1)
    broken.k.fill_(float("nan"))
    broken.v.fill_(float("nan"))
    rows = [Row(broken, 90, 1), Row(Text.random(shape, 5, 2), 5, 1), Row(Text.random(shape, 100, 3), 100, 1)]
    got = run_attention(ops_of(shape.dtype), shape, rows, [], scale=0.125)
    assert got[0].isnan().all()
    for row, ours in list(zip(rows, got, strict=True))[1:]:
        torch.testing.assert_close(ours.double(), attention_in_fp64(row, scale=0.125), atol=1e-5, rtol=1e-5)


def test_stored_keys_and_values_are_multiplied_by_their_scales():
    """With kv_scales (k, v) the result is that of K and V as they were before they were divided."""
    shape = Shape()
    text = Text.random(shape, 70, 4)
    stored = Text(text.q, text.k / 0.5, text.v / 4.0)
    ops = ops_for(Backend.TORCH)
    for decode, prefill in (([Row(stored, 70, 1)], []), ([], [Row(stored, 70, 20)])):
        (ours,) = run_attention(ops, shape, decode, prefill, scale=0.125, kv_scales=(0.5, 4.0))
        expected = attention_in_fp64(Row(text, 70, ours.shape[0]), scale=0.125)
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_page_size_that_no_key_block_is_a_multiple_of_is_refused():
    """Torch's fixed order says which page sizes it takes."""
    shape = Shape(page_size=2 * KEY_BLOCK)
    with pytest.raises(ValueError, match=rf"{KEY_BLOCK}; got {2 * KEY_BLOCK}"):
        run_attention(
            ops_for(Backend.TORCH), shape, [Row(Text.random(shape, 3, 0), 3, 1)], [], deterministic=True, scale=1.0
        )


@st.composite
def texts(draw: st.DrawFn) -> tuple[Shape, int, dict[str, Any], int, bool]:
    """A shape, a length, options, a number of threads, and whether pages are int8."""
    shape = draw(shapes)
    how = {
        "scale": shape.D**-0.5,
        "window": draw(st.none() | st.sampled_from([1, 100])),
        "soft_cap": draw(st.none() | st.just(5.0)),
    }
    return shape, draw(st.sampled_from([shape.page_size + 1, 130])), how, draw(st.integers(1, 3)), draw(st.booleans())


def assert_same_bits_in_any_company(
    ops: Ops, shape: Shape, length: int, how: dict[str, Any], threads: int, narrow: bool, tail: int = 70
) -> None:
    """Of some of the last `tail` tokens of a text, first computed in one chunk by one thread."""

    def random(length: int, seed: int) -> Text:
        text = Text.random(shape, length, seed)
        return text.narrow() if narrow else text

    text = random(length, 1)
    others = [Row(random(n, n), n, 1) for n in (1, 40, 300)]
    chunk = Row(random(90, 90), 90, 33)

    def run(decode: list[Row], prefill: list[Row], seed: int = 0) -> list[Tensor]:
        counted = bool(decode and prefill) and ops.backend is not Backend.C
        return run_attention(ops, shape, decode, prefill, deterministic=True, seed=seed, counted=counted, **how)

    tail = min(tail, length)
    (whole,) = run([], [Row(text, length, tail)])
    torch.set_num_threads(threads)
    for end in sorted({length - tail + 1, length - tail // 2, length - 1, length}):
        (alone,) = run([Row(text, end, 1)], [], seed=1)
        among = run([*others, Row(text, end, 1)], [chunk], seed=2)[3]
        (in_chunk, *_) = run(others[:1], [Row(text, end, min(end, 37)), chunk], seed=3)[1:]
        (as_chunk,) = run([], [Row(text, end, 1)], seed=4)
        for ours in (alone[0], among[0], in_chunk[-1], as_chunk[0]):
            assert torch.equal(ours, whole[end - 1 - length])
    torch.set_num_threads(1)


def test_in_the_fixed_order_a_token_has_the_same_bits_in_any_company(ops_of: OpsFor):
    """As a decode row alone or among others, at the end of a chunk, inside one, with any number of threads."""

    @examples(ops_of, 4 if interpreted(ops_of(torch.float32)) else 8)
    @given(texts())
    def check(case: tuple[Shape, int, dict[str, Any], int, bool]) -> None:
        shape, *rest = case
        assert_same_bits_in_any_company(ops_of(shape.dtype), shape, *rest)

    check()


@pytest.mark.parametrize(
    ("dtype", "narrow"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=["fp32", "bf16", "bf16, int8 pages"],
)
def test_a_token_over_many_keys_has_the_same_bits_in_any_company(ops_of: OpsFor, dtype: torch.dtype, narrow: bool):
    """Also where a lone token's work is shared: in C and Triton in chunks of 512 keys, in torch within a product."""
    ops = ops_of(dtype)
    length, tail = {Backend.C: (1100, 40), Backend.TORCH: (150, 40), Backend.TRITON: (530, 3)}[ops.backend]
    for window in (515,) if interpreted(ops) else (None, 700):
        shape, how = Shape(group=5, kv_heads=1, page_size=32, dtype=dtype), {"scale": 0.125, "window": window}
        assert_same_bits_in_any_company(ops, shape, length, how, threads=2, narrow=narrow, tail=tail)
