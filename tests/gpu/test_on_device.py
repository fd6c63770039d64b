"""The Triton kernels on a GPU: `make gpu-test`, which needs torch, triton and pytest alone. Where there is no GPU the
smaller of these run in Triton's interpreter, so that they are in order when there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.errors import KernelsUnavailable
from kernels.fp8_linear import Fp8Weight
from kernels.prepare_batch import FlatBatch
from kernels.quantised_linear import QuantisedWeight
from kernels.table import Backend, Ops, ops_for
from tests.kernels.paged import Row, Shape, Text, attention_in_fp64, run_attention

THERE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if THERE else "cpu")
BF16, FP16 = torch.bfloat16, torch.float16
on_gpu = pytest.mark.skipif(not THERE, reason="no GPU here")
# Half a unit in the last place of outputs up to 4, and of the softmax weights.
TOLERANCE = {BF16: 2.0**-6, FP16: 2.0**-9}


@pytest.fixture(scope="module")
def ops() -> Ops:
    try:
        return ops_for(Backend.TRITON)
    except KernelsUnavailable as error:
        pytest.skip(str(error))


def rows_of(shape: Shape) -> tuple[list[Row], list[Row]]:
    """Decode and prefill rows about pages and chunks of keys; few and short ones in the interpreter."""
    page = shape.page_size
    lengths = [1, page - 1, page, page + 1, 511, 513, 3000] if THERE else [1, page + 1]
    chunks = [(1, 1), (page, page), (700, 130), (2000, 1999)] if THERE else [(page + 5, 20)]
    decode = [Row(Text.random(shape, length, length), length, 1) for length in lengths]
    return decode, [Row(Text.random(shape, length, length + 1), length, some) for length, some in chunks]


# (query heads a key head, key heads, elements a head, tokens a page, dtype, window, soft-cap, fixed order): each two of
# the values of two columns meet about once
SHAPES = [
    (4, 2, 128, 32, BF16, None, None, False),
    (1, 3, 64, 16, BF16, 100, 30.0, True),
    (8, 1, 80, 64, FP16, None, 30.0, False),
    (7, 2, 96, 32, FP16, 1, None, True),
    (16, 1, 256, 16, BF16, None, None, True),
    (2, 2, 256, 64, BF16, 100, None, False),
    (3, 1, 128, 64, BF16, 1, 30.0, False),
    (5, 2, 64, 32, FP16, 100, None, False),
]


@pytest.mark.parametrize("counted", [False, True] if THERE else [True])
@pytest.mark.parametrize("case", SHAPES if THERE else SHAPES[:3], ids=str)
def test_attention_is_the_formula(ops: Ops, case: tuple[Any, ...], counted: bool):
    """Decode and prefill, over pages in no order with NaN wherever nothing was written; also where the device alone
    knows how many rows decode."""
    *sizes, window, soft_cap, fixed = case
    shape = Shape(*sizes)
    decode, prefill = rows_of(shape)
    how = {"scale": shape.D**-0.5, "window": window, "soft_cap": soft_cap}
    got = run_attention(ops, shape, decode, prefill, deterministic=fixed, device=DEVICE, counted=counted, **how)
    for row, ours in zip([*decode, *prefill], got, strict=True):
        expected = attention_in_fp64(row, **how)
        tolerance = TOLERANCE[shape.dtype]
        torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("sizes", [(4, 2, 128, 32, BF16), (16, 1, 256, 16, BF16)] if THERE else [(4, 1, 64, 32, BF16)])
def test_in_the_fixed_order_decode_and_prefill_give_a_token_the_same_bits(ops: Ops, sizes: tuple[Any, ...]):
    """Alone, among others, and as any token of a chunk: what no compiler's output can promise without a GPU."""
    shape = Shape(*sizes)
    length = 1500 if THERE else 530
    text = Text.random(shape, length, 1)
    others, _ = rows_of(shape)

    def run(decode: list[Row], prefill: list[Row]) -> list[Tensor]:
        counted = len(decode) > 1
        return run_attention(ops, shape, decode, prefill, deterministic=True, device=DEVICE, counted=counted, scale=0.1)

    tail = 70 if THERE else 4
    (whole,) = run([], [Row(text, length, tail)])
    for end in range(length - tail + 1, length + 1, 23 if THERE else 3):
        (alone,) = run([Row(text, end, 1)], [])
        among = run([*others * (3 if THERE else 1), Row(text, end, 1)], [])[-1]  # few rows and many have other launches
        assert torch.equal(alone[0], whole[end - 1 - length])
        assert torch.equal(among[0], whole[end - 1 - length])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def counted(count: int) -> Tensor:
    return torch.arange(count, device=DEVICE)


def _rope(ops: Ops, T: int) -> Tensor:
    kv = torch.zeros(T // 32 + 1, 2, 2, 32, 128, dtype=BF16, device=DEVICE)
    angles = random(T, 64, seed=1, dtype=torch.float32)
    weight = random(128, seed=2)
    table = torch.cat([angles.cos(), angles.sin()], -1)
    q = ops.norm_rope_write(
        random(T, 8 * 128), kv, counted(T), counted(T), table, q_norm=weight, k_norm=weight, eps=1e-6
    )
    return torch.cat([q.flatten(), kv.flatten()])


def _sampling_inputs(ops: Ops, T: int) -> Tensor:
    """Odd draws are the last seat's, which is nobody's; even rows get a token."""
    wholes = (counted(5 * (T + 1)) * 37 % 11).view(5, T + 1)
    reals, logits = random(3, T + 1, dtype=torch.float32), random(T, 500)
    stops = counted(8 * (T + 1)).view(T + 1, 8).int() * 7 % 501 - 1
    seats = torch.where(counted(T) % 2 == 0, counted(T).flip(0), T)
    inputs = ops.sampling_inputs(wholes, reals, stops, seats, (seats < T).long(), seats, logits)
    return torch.cat([tensor.flatten().float() for tensor in (*inputs, wholes, logits)])


def _append_tokens(ops: Ops, T: int) -> Tensor:
    """Every seventh logit is not finite."""
    tokens, logits, ids = torch.zeros(T, 40, dtype=torch.int32, device=DEVICE), random(T, 500), counted(T) % 500
    logits[::7] = float("nan")
    result = ops.append_tokens(tokens, counted(T) % 40, counted(T).flip(0), logits, ids)
    return torch.cat([tokens.flatten(), result.flatten()])


ELEMENTWISE: dict[str, Callable[[Ops, int], Tensor]] = {
    "rms_norm": lambda ops, T: ops.rms_norm(random(T, 4096), random(4096, seed=1), 1e-5, random(T, 4096, seed=2)),
    "silu_mul": lambda ops, T: ops.silu_mul(random(T, 2 * 1408)),
    "gelu_mul": lambda ops, T: ops.gelu_mul(random(T, 2 * 1408)),
    "norm_rope_write": _rope,
    "plain_linear": lambda ops, T: ops.plain_linear(random(T, 4096), random(300, 4096, seed=1), random(300, seed=2)),
    "plain_linear, wide": lambda ops, T: ops.plain_linear(random(T, 512), random(17408 if THERE else 64, 512, seed=1)),
    "gather_rms_norm": lambda ops, T: torch.cat(
        ops.gather_rms_norm(random(T, 4096), counted(T).flip(0), random(4096, seed=1), 1e-5, random(T, 4096, seed=2))
    ),
    "sampling_inputs": _sampling_inputs,
    "append_tokens": _append_tokens,
    "token_logprobs": lambda ops, T: ops.token_logprobs(random(T, 5000), counted(T).view(T, 1) * 3),
}


@pytest.mark.parametrize("T", [1, 3, 13, 300] if THERE else [2])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_operation_gives_what_its_reference_gives(ops: Ops, name: str, T: int):
    """On the same device, to the rounding of a few bf16 operations."""
    ours, theirs = ELEMENTWISE[name](ops, T), ELEMENTWISE[name](ops_for(Backend.TORCH), T)
    torch.testing.assert_close(ours.float(), theirs.float(), atol=2.0**-5, rtol=2.0**-6)


@pytest.mark.parametrize(("N", "K"), [(640, 1536), (9216, 512)] if THERE else [(128, 1024)])
def test_in_the_fixed_order_a_row_has_the_same_bits_in_tiles_of_any_size(ops: Ops, N: int, K: int):
    """Some rows of 300, in the tiles for few, some and many; with and without segments."""
    x, weight, bias = random(300 if THERE else 16, K), random(N, K, seed=1), random(N, seed=2)
    whole = ops.plain_linear(x, weight, bias, fixed=True)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(whole.double(), exact, atol=2.0**-5, rtol=2.0**-7)
    for rows in (1, 16, 17, 64, 65, 129) if THERE else (1, 5):
        assert torch.equal(ops.plain_linear(x[-rows:], weight, bias, fixed=True), whole[-rows:])


@pytest.mark.parametrize("T", [1, 3, 16, 17, 64, 300] if THERE else [2])
@pytest.mark.parametrize(("bits", "group"), [(4, 128), (8, 512), (4, 64)])
def test_a_quantised_product_is_the_formula(ops: Ops, bits: int, group: int, T: int):
    """Whether sums are scaled or each weight is rounded to bf16, which is most of what is allowed here; in the fixed
    order a row alone has the bits it has among all."""
    weight = QuantisedWeight.of(random(200, 512, seed=1), bits, group)
    x, bias = random(T, 512), random(200, seed=2)
    expected = x.double() @ weight.whole(torch.float32).double() + bias.double()
    for fixed in (False, True):
        ours = ops.quantised_linear(x, weight, bias, fixed=fixed)
        torch.testing.assert_close(ours.double(), expected, atol=2.0**-2, rtol=2.0**-6)
        assert (ours.double() - expected).norm() < 2.0**-8 * expected.norm()
    assert torch.equal(ops.quantised_linear(x[:1], weight, bias, fixed=True)[0], ours[0])


@pytest.mark.parametrize("T", [1, 3, 16, 64, 300, 2048] if THERE else [3])
def test_an_fp8_product_is_its_reference(ops: Ops, T: int):
    """Rows rounded by the kernel, products by torch's `_scaled_mm` with a scale a row and a scale an output; in the
    fixed order a row alone has the bits it has among all."""
    amd = torch.version.hip is not None
    if THERE and not amd and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no FP8")
    numbers = torch.float8_e4m3fnuz if amd else torch.float8_e4m3fn
    weight, x, bias = Fp8Weight.of(random(208, 512, seed=1), numbers), random(T, 512), random(208, seed=2)
    ours, theirs = (one.fp8_linear(x, weight, bias) for one in (ops, ops_for(Backend.TORCH)))
    # rows round alike; sums run in another order, and Hopper's add some of them in less than fp32
    torch.testing.assert_close(ours.float(), theirs.float(), atol=2.0**-4, rtol=2.0**-6)
    fixed = ops.fp8_linear(x, weight, bias, fixed=True)
    assert torch.equal(ops.fp8_linear(x[:1], weight, bias, fixed=True)[0], fixed[0])


def draws(ops: Ops, rows: int, vocab: int) -> Tensor:
    reals = torch.ones(rows, device=DEVICE)
    temperature = reals * 0.9 * (counted(rows) % 4 != 0)
    top_k, top_p = (counted(rows) % 3 == 1) * 50, torch.where(counted(rows) % 3 == 2, 0.9, 1.0)
    logits = random(rows, vocab) * 3
    return ops.sample(
        logits, temperature, top_k, top_p, reals * 0.001, counted(rows) * 10**12, counted(rows), exact_noise=True
    )


def test_draws_are_the_reference_draws(ops: Ops):
    """Greedy rows and rows with top-k, top-p and neither; in 256 a near-tie or two may fall the other way."""
    rows, vocab = (256, 128256) if THERE else (6, 1500)
    same = draws(ops, rows, vocab) == draws(ops_for(Backend.TORCH), rows, vocab)
    assert int((~same).sum()) <= (2 if THERE else 0)
    again = draws(ops, rows, vocab)
    for _ in range(50 if THERE else 1):  # a row's result is made by whichever of its programs is done last
        assert torch.equal(again, draws(ops, rows, vocab))


def batch_for(lens: list[int], pages: int) -> FlatBatch:
    R = len(lens)
    table = torch.arange(R * pages, dtype=torch.int32, device=DEVICE).view(R, pages)
    nothing, start = counted(R) * 0, counted(R + 1)
    return FlatBatch(nothing, nothing, nothing, start, torch.tensor(lens, device=DEVICE), table, nothing, R)


@on_gpu
def test_a_captured_graph_follows_the_lengths_on_the_device(ops: Ops):
    """Captured over rows of one token, replayed over long ones and padding rows: nothing was fixed but the shapes."""
    batch = batch_for([1] * 8, 64)
    kv, q = random(8 * 64, 2, 4, 32, 128), random(8, 16, 128)
    out = torch.zeros_like(q)
    work = ops.attention_workspace(batch, tuple(kv.shape), 16, deterministic=False)

    def run() -> None:
        ops.decode_attention(q, kv, batch, work, out, scale=0.1)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for lens in ([2000, 1, 33, 512, 7, 0, 0, 0], [2048] * 8):
        batch.seq_lens.copy_(torch.tensor(lens))
        out.fill_(77)
        graph.replay()
        expected = torch.full_like(out, 77)
        real = sum(length > 0 for length in lens)
        fresh = replace(batch, query_start=torch.clamp(batch.query_start, max=real))
        reference = ops_for(Backend.TORCH)
        reference.decode_attention(
            q, kv, fresh, reference.attention_workspace(fresh, tuple(kv.shape), 16, deterministic=False), expected,
            scale=0.1,
        )  # fmt: skip
        torch.testing.assert_close(out, expected, atol=2.0**-6, rtol=2.0**-6)


@on_gpu
def test_nothing_waits_for_the_device(ops: Ops):
    """A decode step's operations make no synchronising call; torch raises where one does."""
    batch = batch_for([100] * 8, 16)
    kv, q = random(8 * 16, 2, 4, 32, 128), random(8, 16, 128)
    work = ops.attention_workspace(batch, tuple(kv.shape), 16, deterministic=False)
    x, weight = random(8, 4096), random(4096)

    def step() -> None:
        ops.rms_norm(x, weight, 1e-5)
        ops.silu_mul(x)
        ops.decode_attention(q, kv, batch, work, torch.empty_like(q), scale=0.1)
        numbers, reals = counted(8), torch.ones(8, device=DEVICE)
        wholes, stops = counted(5 * 8).view(5, 8), torch.ones(8, 8, dtype=torch.int32, device=DEVICE)
        inputs = ops.sampling_inputs(wholes, reals.expand(3, 8).contiguous(), stops, numbers, numbers, numbers, x)
        ops.append_tokens(x.int(), numbers, numbers, x, ops.sample(x, *inputs))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
