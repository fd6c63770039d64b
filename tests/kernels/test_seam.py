"""The signatures that all backends share: results go where the caller wants them, on the device of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch
from kernels.table import Backend, Ops, ops_for
from tests.kernels.backends import ops_or_skip
from tests.kernels.conftest import OpsFor
from tests.kernels.paged import Row, Shape, Text, attention_in_fp64, run_attention

FP32 = torch.float32


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu")


def counts(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


Run = Callable[..., Tensor]


def _norm_rope_write(ops: Ops, **more: Any) -> Tensor:
    kv = torch.zeros(2, 2, 1, 16, 32, device="cpu")
    weight = normal(32, seed=1)
    return ops.norm_rope_write(
        normal(3, 128), kv, counts(0, 1, 5), counts(3, -1, 20), normal(8, 32), q_norm=weight, k_norm=weight, **more
    )


def _sample(ops: Ops, **more: Any) -> Tensor:
    temperature, ones = torch.tensor([0.0, 0.8, 1.0], device="cpu"), torch.ones(3, device="cpu")
    return ops.sample(
        normal(3, 64),
        temperature,
        counts(0, 5, 0),
        ones * 0.9,
        ones * 0.01,
        counts(1, 2, 3),
        counts(4, 5, 6),
        banned=(counts(0), counts(7)),
        exact_noise=True,
        **more,
    )


MAKERS: dict[str, Run] = {
    "rms_norm": lambda ops, **more: ops.rms_norm(normal(3, 64), normal(64), 1e-5, residual=normal(3, 64), **more),
    "silu_mul": lambda ops, **more: ops.silu_mul(normal(3, 64), **more),
    "norm_rope_write": _norm_rope_write,
    "sample": _sample,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_result_goes_into_the_tensor_that_the_caller_gives(ops_of: OpsFor, name: str):
    """It is that tensor that comes back, with what a new one would hold."""
    ops, run = ops_of(FP32), MAKERS[name]
    expected = run(ops)
    out = torch.full_like(expected, 77)
    assert run(ops, out=out) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["rms_norm", "silu_mul", "norm_rope_write"])
def test_an_output_of_another_shape_does_not_reach_c(name: str):
    """C would write past its end."""
    ops = ops_or_skip(Backend.C)
    with pytest.raises(AssertionError, match=r"out has shape \(1, 2\)"):
        MAKERS[name](ops, out=torch.zeros(1, 2))


def _prepare(ops: Ops, rows: Tensor, lens: Tensor, **more: Any) -> FlatBatch:
    """Rows of up to 40 tokens in pages of 16; 3, 20 and 33 tokens are there already."""
    tokens = torch.arange(120, dtype=torch.int32, device="cpu").view(3, 40)
    table = torch.tensor([[5, 2, 7], [1, 0, 4], [3, 6, 8]], dtype=torch.int32, device="cpu")
    more = {"page_size": 16, "num_decode": int((lens == 1).sum()), **more}
    return ops.prepare_batch(tokens, counts(3, 20, 33), table, rows, lens, counts(0, 1), **more)


def _attention(ops: Ops, deterministic: bool, scales: KvScales | None = None) -> Tensor:
    batch = _prepare(ops, counts(2, 0, 1), counts(1, 1, 9))
    kv = normal(9, 2, 1, 16, 32)
    q = normal(11, 2, 32)
    out = torch.empty_like(q)
    workspace = ops.attention_workspace(batch, tuple(kv.shape), 2, deterministic=deterministic)
    for attention in (ops.decode_attention, ops.prefill_attention):
        attention(q, kv, batch, workspace, out, scale=0.2, window=11, kv_scales=scales)
    return out


REFERENCES: dict[str, Callable[[Ops], Tensor]] = {
    **MAKERS,
    "gather_rms_norm": lambda ops: ops.gather_rms_norm(normal(5, 32), counts(4, 0, 4), normal(32), 1e-5)[1],
    "norm_rope_write, scales": lambda ops: _norm_rope_write(ops, kv_scales=(2.0, 0.5)),
    "fast order": lambda ops: _attention(ops, False),
    "fixed order": lambda ops: _attention(ops, True),
    "fixed order, scales": lambda ops: _attention(ops, False, normal(9, 2, 1, 16).abs()),
    "prepare_batch": lambda ops: _prepare(ops, counts(2, 0, 1), counts(1, 1, 9)).slot_mapping,
    "prepare_batch, padded": lambda ops: _prepare(ops, counts(2, 0, -1), counts(1, 1, 0), num_decode=3).slot_mapping,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_works_on_the_device_of_its_inputs(name: str):
    """A tensor that it makes without naming a device lands on one without memory here, and can't meet ours."""
    ops = ops_for(Backend.TORCH)
    expected = REFERENCES[name](ops)
    with torch.device("meta"):
        got = REFERENCES[name](ops)
    assert torch.equal(got, expected)


def test_padding_rows_hold_no_token_and_no_place():
    """Behind two decode rows: tokens without a slot, lengths of 0, and the rows before are as without them."""
    ops = ops_for(Backend.TORCH)
    plain = _prepare(ops, counts(2, 0), counts(1, 1), pad_tokens=4)
    padded = _prepare(ops, counts(2, 0, -1, -1), counts(1, 1, 0, 0), pad_tokens=4, num_decode=4)
    assert padded.num_decode == 4
    assert padded.seq_lens.tolist() == [34, 4, 0, 0]
    assert padded.query_start.tolist() == [0, 1, 2, 2, 2]
    for name in ("input_ids", "positions", "slot_mapping", "logits_index"):
        assert torch.equal(getattr(padded, name), getattr(plain, name))
    assert torch.equal(padded.page_table[:2], plain.page_table)


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
def test_attention_leaves_padding_rows_alone(ops_of: OpsFor, deterministic: bool):
    """What a padding row's place in the output holds stays there; its neighbour is right."""
    ops, kv, q = ops_of(FP32), normal(9, 2, 1, 16, 32), normal(3, 2, 32)
    kv[0] = float("nan")
    batch = _prepare(ops, counts(2, -1, -1), counts(1, 0, 0), pad_tokens=3, num_decode=3, num_pages=3)
    out = torch.full_like(q, 77)
    workspace = ops.attention_workspace(batch, tuple(kv.shape), 2, deterministic=deterministic)
    ops.decode_attention(q, kv, batch, workspace, out, scale=0.2)
    assert (out[1:] == 77).all()
    assert not (out[0] == 77).any()
    assert out[0].isfinite().all()


def test_a_batch_goes_into_the_tensors_of_an_earlier_one():
    """With a page table of the width asked for; the earlier batch's own tensors hold the new one."""
    ops = ops_for(Backend.TORCH)
    earlier = _prepare(ops, counts(2, 0), counts(1, 1), pad_tokens=4, num_pages=3)
    expected = _prepare(ops, counts(1, 2), counts(1, 2), pad_tokens=4, num_pages=3)
    got = _prepare(ops, counts(1, 2), counts(1, 2), pad_tokens=4, num_pages=3, out=earlier)
    assert got.num_decode == 1
    for field in fields(FlatBatch)[:7]:
        assert getattr(got, field.name) is getattr(earlier, field.name)
        assert torch.equal(getattr(got, field.name), getattr(expected, field.name)), field.name


# What rounding to the stored dtype costs: half of 1/127 of the head's greatest, about 4; an eighth of each value's
# half unit (3 bits of mantissa).
STORED = [(torch.int8, 0.03), (torch.float8_e4m3fn, 0.15)]


BACKENDS = pytest.mark.parametrize("backend", [Backend.TORCH, Backend.TRITON])
STORED_BY = pytest.mark.parametrize(
    ("backend", "dtype", "tolerance", "own"),
    [
        (backend, dtype, tolerance, own)
        for backend in Backend
        for dtype, tolerance in STORED
        for own in (False, True)
        if backend is not Backend.C or (own and dtype == torch.int8)  # what it has
    ],
)


@STORED_BY
def test_keys_and_values_come_back_from_a_smaller_dtype(
    backend: Backend, dtype: torch.dtype, tolerance: float, own: bool
):
    """What norm_rope_write stored, times its scales, is what a pool of the model's dtype would hold, to rounding."""
    ops, pages = ops_or_skip(backend), (2, 2, 2, 16, 32)
    qkv, angles, slots = normal(20, 6 * 32), torch.zeros(20, 32), torch.randperm(32)[:20]
    angles[:, :16] = 1.0  # no turn
    whole, small = torch.zeros(pages), torch.zeros(pages).to(dtype)
    scales: KvScales = torch.full(pages[:-1], float("nan")) if own else (1 / 32, 1 / 32)
    for kv, how in ((whole, None), (small, scales)):
        ops.norm_rope_write(qkv, kv, torch.arange(20), slots, angles, kv_scales=how)
    factors = scales.unsqueeze(-1).nan_to_num(1.0) if isinstance(scales, Tensor) else 1 / 32
    assert (small.float() * factors - whole).abs().max() < tolerance
    assert (small.float() != 0).any()
    if isinstance(scales, Tensor):
        assert int(scales.isfinite().sum()) == 20 * 4, "only the slots that were written have a scale"


@BACKENDS
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast order", "fixed order"])
def test_attention_multiplies_by_a_scale_of_each_token_and_head(backend: Backend, deterministic: bool):
    """As if K and V had been stored as they were; scales of slots that no token has may be NaN."""
    shape = Shape()
    text = Text.random(shape, 70, 4)
    k_scale, v_scale = normal(70, 2, seed=5).abs() + 0.1, normal(70, 2, seed=6).abs() + 0.1
    stored = Text(text.q, text.k / k_scale.unsqueeze(-1), text.v / v_scale.unsqueeze(-1))
    expected = attention_in_fp64(Row(text, 70, 3), scale=0.125)
    (got,) = run_attention(
        ops_for(backend),
        shape,
        [],
        [Row(replace(stored, k_scale=k_scale, v_scale=v_scale), 70, 3)],
        deterministic=deterministic,
        scale=0.125,
    )
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@STORED_BY
def test_attention_reads_what_was_stored_in_a_smaller_dtype(
    backend: Backend, dtype: torch.dtype, tolerance: float, own: bool
):
    """Decode and prefill over such pages differ from those over the model's dtype by the rounding alone."""
    ops, pages = ops_or_skip(backend), (9, 2, 2, 16, 32)
    lens, angles = counts(1, 1, 9), torch.zeros(40, 32)
    angles[:, :16] = 1.0
    outs = []
    for kv_dtype in (FP32, dtype):
        kv = torch.zeros(pages).to(kv_dtype)
        scales: KvScales | None = None
        if kv_dtype == dtype:
            scales = torch.ones(pages[:-1]) if own else (1 / 32, 1 / 32)
        cached = normal(9 * 16, 6 * 32, seed=3)
        ops_for(Backend.TORCH).norm_rope_write(
            cached, kv, torch.zeros(144, dtype=torch.int64), torch.arange(144), angles, kv_scales=scales
        )
        batch = _prepare(ops, counts(2, 0, 1), lens)
        q, out = normal(11, 4, 32), torch.full((11, 4, 32), float("nan"))
        workspace = ops.attention_workspace(batch, pages, 4, deterministic=False)
        for attention in (ops.decode_attention, ops.prefill_attention):
            attention(q, kv, batch, workspace, out, scale=0.2, kv_scales=scales)
        outs.append(out)
    assert (outs[1] - outs[0]).abs().max() < 2 * tolerance
    assert not torch.equal(outs[0], outs[1])


@pytest.mark.parametrize("backend", Backend)
def test_pages_past_two_to_the_31_elements_are_reached(backend: Backend):
    """Written, and read by decode and prefill, in the last pages of a pool of 2.2 GB that no one else touches."""
    ops, pages = ops_or_skip(backend), (1_100_000, 2, 1, 16, 64)
    kv = torch.empty(pages, dtype=torch.int8)
    assert kv.numel() > 2**31
    scales: KvScales = torch.empty(pages[:-1]) if backend is Backend.C else (1 / 32, 1 / 32)
    table = torch.tensor([[pages[0] - 1, 0], [pages[0] - 2, pages[0] - 3]], dtype=torch.int32)
    angles = torch.zeros(40, 64)
    angles[:, :32] = 1.0
    slots = torch.cat(
        [table[0, 0] * 16 + torch.arange(16), table[1].long().repeat_interleave(16) * 16 + torch.arange(16).repeat(2)]
    )
    qkv = normal(48, 4 * 64)
    ops.norm_rope_write(qkv, kv, torch.zeros(48, dtype=torch.int64), slots, angles, kv_scales=scales)
    batch = FlatBatch(
        counts(0, 0, 0), counts(15, 30, 31), counts(0, 0, 0), counts(0, 1, 3), counts(16, 32), table, counts(0), 1
    )
    q, out = normal(3, 2, 64), torch.full((3, 2, 64), float("nan"))
    workspace = ops.attention_workspace(batch, pages, 2, deterministic=True)
    for attention in (ops.decode_attention, ops.prefill_attention):
        attention(q, kv, batch, workspace, out, scale=0.2, kv_scales=scales)
    k, v = qkv.view(48, 4, 64)[:, 2:].unbind(1)
    expected = attention_in_fp64(Row(Text(q[:1].expand(16, -1, -1), k[:16, None], v[:16, None]), 16, 1), scale=0.2)
    torch.testing.assert_close(out[:1].double(), expected, atol=0.05, rtol=0.05)
    text = Text(torch.cat([q[1:2].expand(31, -1, -1), q[2:]]), k[16:, None], v[16:, None])
    torch.testing.assert_close(out[1:].double(), attention_in_fp64(Row(text, 32, 2), scale=0.2), atol=0.05, rtol=0.05)
