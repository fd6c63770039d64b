"""The launches to compile: each case calls launchers as the engine does, on tensors of true shapes, empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kernels.adjust_logits import Penalties
from kernels.gpu.adjust_logits import adjust_logits
from kernels.gpu.append_tokens import append_tokens
from kernels.gpu.architectures import FIXED_PRODUCT, Architecture
from kernels.gpu.decode_attention import Workspace, attention_workspace, decode_attention
from kernels.gpu.fixed_linear import launched
from kernels.gpu.fp8_linear import quantised_rows
from kernels.gpu.gather_rms_norm import gather_rms_norm
from kernels.gpu.norm_rope_write import norm_rope_write
from kernels.gpu.plain_linear import plain_linear
from kernels.gpu.prefill_attention import prefill_attention
from kernels.gpu.prepare_batch import prepare_batch
from kernels.gpu.quantised_linear import launch, whole_weight
from kernels.gpu.rms_norm import rms_norm
from kernels.gpu.sample import sample
from kernels.gpu.sampling_inputs import sampling_inputs
from kernels.gpu.silu_mul import gelu_mul, silu_mul
from kernels.gpu.token_logprobs import token_logprobs
from kernels.gpu.write_spans import write_spans
from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch
from kernels.quantised_linear import QuantisedWeight

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
Case = Callable[[Architecture], object]


def fp8(target: Architecture) -> torch.dtype:
    """The fp8 that a target computes in; sm_80 has none, there K/V are int8."""
    if target is Architecture.GFX942:
        return torch.float8_e4m3fnuz
    return torch.int8 if target is Architecture.SM_80 else torch.float8_e4m3fn


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def batch_of(decode: int, prefill: int, pages: int) -> FlatBatch:
    rows, tokens = decode + prefill, decode + 64 * prefill
    long = torch.int64
    return FlatBatch(
        input_ids=empty(tokens, dtype=long),
        positions=empty(tokens, dtype=long),
        slot_mapping=empty(tokens, dtype=long),
        query_start=empty(rows + 1, dtype=long),
        seq_lens=empty(rows, dtype=long),
        page_table=empty(rows, pages, dtype=torch.int32),
        logits_index=empty(rows, dtype=long),
        num_decode=decode,
    )


def attention(
    kind: str,
    *,
    D: int = 128,
    group: int = 4,
    kv_heads: int = 8,
    page_size: int = 32,
    dtype: torch.dtype = BF16,
    stored: str | None = None,
    fixed: bool = False,
    rows: int = 8,
    **how: Any,
) -> Case:
    """A decode of `rows` or a prefill; stored: `fp8` with a scale a layer, `int8` with one a token and head."""

    def call(target: Architecture) -> None:
        decode, prefill = (rows, 0) if kind == "decode" else (0, 4)
        batch = batch_of(decode, prefill, 64)
        kv_dtype = {None: dtype, "fp8": fp8(target), "int8": torch.int8}[stored]
        kv = empty(64, 2, kv_heads, page_size, D, dtype=kv_dtype)
        q = empty(len(batch.input_ids), group * kv_heads, D, dtype=dtype)
        scales: dict[str | None, KvScales | None] = {
            None: None, "fp8": (0.5, 0.5), "int8": empty(64, 2, kv_heads, page_size, dtype=FP32),
        }  # fmt: skip
        workspace: Workspace = attention_workspace(batch, tuple(kv.shape), q.shape[1], deterministic=fixed)
        run = decode_attention if kind == "decode" else prefill_attention
        run(
            q, kv, batch, replace(workspace, architecture=target), torch.empty_like(q), scale=0.1,
            kv_scales=scales[stored], **how,
        )  # fmt: skip

    return call


def rope(*, normed: bool, stored: str | None = None, D: int = 128, dtype: torch.dtype = BF16) -> Case:
    def call(target: Architecture) -> None:
        kv_dtype = {None: dtype, "fp8": fp8(target), "int8": torch.int8}[stored]
        weight = empty(D, dtype=dtype) if normed else None
        scales: dict[str | None, KvScales | None] = {
            None: None, "fp8": (0.5, 0.5), "int8": empty(64, 2, 8, 32, dtype=FP32),
        }  # fmt: skip
        norm_rope_write(
            empty(16, 48 * D, dtype=dtype), empty(64, 2, 8, 32, D, dtype=kv_dtype), empty(16, dtype=torch.int64),
            empty(16, dtype=torch.int64), empty(64, D, dtype=FP32), q_norm=weight, k_norm=weight, eps=1e-6,
            kv_scales=scales[stored],
        )  # fmt: skip

    return call


def gathered(*, added: bool) -> Case:
    def call(target: Architecture) -> None:
        residual = empty(16, 4096) if added else None
        gather_rms_norm(empty(16, 4096), empty(4, dtype=torch.int64), empty(4096), 1e-5, residual)

    return call


def _prepare() -> object:
    long = torch.int64
    return prepare_batch(
        empty(256, 8192, dtype=torch.int32), empty(256, dtype=long), empty(256, 256, dtype=torch.int32),
        empty(64, dtype=long), empty(64, dtype=long), empty(64, dtype=long), page_size=32, num_decode=64, pad_tokens=64,
        pad_logits=64, num_pages=256,
    )  # fmt: skip


def quantised_weight(bits: int, *, scales: torch.dtype = BF16, small: int | None = None) -> QuantisedWeight:
    """4 bits in groups with zeros, 8 bits with a scale an output, unless groups are small; a checkpoint's scales are
    fp16."""
    K, N, group = 4096, 14336, small or (128 if bits == 4 else 4096)
    block = min(group, 128)
    codes = empty(K // block, N, block * bits // 16, dtype=torch.int16)
    zeros = empty(K // group, N, dtype=scales) if bits == 4 else None
    return QuantisedWeight(codes, empty(K // group, N, dtype=scales), zeros, bits)


def quantised(bits: int, rows: int, **how: Any) -> Case:
    def call(target: Architecture) -> None:
        weight = quantised_weight(bits, **how)
        launch(empty(rows, weight.in_features), weight, None, None, target)

    return call


def fixed(rows: int, N: int, K: int) -> Case:
    def call(target: Architecture) -> None:
        launch = next(launch for most, launch in FIXED_PRODUCT[target] if most is None or rows <= most)
        launched(empty(rows, K), empty(N, K), None, None, launch, target)

    return call


def written_out(bits: int) -> Case:
    return lambda target: whole_weight(quantised_weight(bits), BF16)


def fp8_rows(target: Architecture) -> None:
    """sm_80 has no FP8: nothing is launched there."""
    if target is not Architecture.SM_80:
        quantised_rows(empty(16, 4096), fp8(target))


def _adjust() -> object:
    rows, vocab, long = 16, 128256, torch.int64
    reals, numbers = empty(rows, dtype=FP32), empty(rows, dtype=long)
    bits = empty(rows, vocab // 32, dtype=torch.int32)
    past = Penalties(numbers, bits, empty(rows, vocab, dtype=torch.int32), reals, reals, reals)
    return adjust_logits(empty(rows, vocab), bias=(numbers, numbers, reals), allowed=bits, penalties=past)


def _sample() -> object:
    rows, long = 16, torch.int64
    reals, numbers = empty(rows, dtype=FP32), empty(rows, dtype=long)
    return sample(empty(rows, 128256), reals, numbers, reals, reals, numbers, numbers)


def _sampling_inputs() -> object:
    rows, seats, long = 16, 65, torch.int64
    numbers = empty(rows, dtype=long)
    wholes, reals = empty(5, seats, dtype=long), empty(3, seats, dtype=FP32)
    stops = empty(seats, 8, dtype=torch.int32)
    return sampling_inputs(wholes, reals, stops, numbers, numbers, numbers, empty(rows, 128256))


def _append_tokens() -> object:
    rows, seats, long = 16, 65, torch.int64
    tokens, numbers = empty(seats, 8192, dtype=torch.int32), empty(rows, dtype=long)
    return append_tokens(tokens, empty(seats, dtype=long), numbers, empty(rows, 128256), numbers)


CASES: dict[str, Case] = {
    **{
        f"attention {kind}, D {D}, {group} heads a key head": attention(kind, D=D, group=group)
        for kind in ("decode", "prefill")
        for D, group in ((128, 4), (128, 2), (64, 8), (80, 1), (96, 7), (256, 16))
    },
    **{
        f"attention {kind}, window and soft-cap": attention(kind, window=4096, soft_cap=50.0)
        for kind in ("decode", "prefill")
    },
    **{f"attention {kind}, pages of {size}": attention(kind, page_size=size)
       for kind in ("decode", "prefill") for size in (16, 64)},
    **{f"attention of many rows, D {D}, {group} heads a key head": attention("decode", rows=64, D=D, group=group)
       for D, group in ((128, 4), (128, 2), (96, 7), (64, 8))},
    "attention of many rows, fixed order": attention("decode", rows=64, fixed=True),
    "attention of many rows, window and soft-cap": attention("decode", rows=64, window=4096, soft_cap=50.0),
    **{f"attention {kind}, fp16": attention(kind, dtype=FP16) for kind in ("decode", "prefill")},
    **{f"attention {kind}, {stored} pages": attention(kind, stored=stored)
       for kind in ("decode", "prefill") for stored in ("fp8", "int8")},
    **{f"attention {kind}, fixed order": attention(kind, fixed=True) for kind in ("decode", "prefill")},
    **{f"attention {kind}, fixed order, D 256": attention(kind, fixed=True, D=256) for kind in ("decode", "prefill")},
    "norm_rope_write": rope(normed=False),
    "norm_rope_write, norms": rope(normed=True),
    "norm_rope_write, norms, fp8 pages": rope(normed=True, stored="fp8"),
    "norm_rope_write, int8 pages": rope(normed=False, stored="int8"),
    "norm_rope_write, D 80": rope(normed=False, D=80),
    "rms_norm": lambda target: rms_norm(empty(16, 4096), empty(4096), 1e-5),
    "rms_norm, residual": lambda target: rms_norm(empty(16, 4096), empty(4096), 1e-5, empty(16, 4096)),
    "rms_norm, 16384 wide": lambda target: rms_norm(empty(4, 16384), empty(16384), 1e-5, empty(4, 16384)),
    **{f"gather_rms_norm{said}": gathered(added=added) for said, added in (("", False), (", residual", True))},
    "silu_mul": lambda target: silu_mul(empty(16, 28672)),
    "gelu_mul": lambda target: gelu_mul(empty(16, 28672)),
    "prepare_batch": lambda target: _prepare(),
    "write_spans": lambda target: write_spans(empty(4096, dtype=torch.int32), empty(64, dtype=torch.int32), 4),
    "sampling_inputs": lambda target: _sampling_inputs(),
    "sample": lambda target: _sample(),
    "append_tokens": lambda target: _append_tokens(),
    "adjust_logits": lambda target: _adjust(),
    "token_logprobs": lambda target: token_logprobs(empty(16, 128256), empty(16, 4, dtype=torch.int64)),
    **{f"fixed_linear, {rows} rows of {K}": fixed(rows, N, K) for rows in (16, 64, 2048)
       for N, K in ((4096, 14336), (28672, 4096))},
    "plain_linear, one row": lambda target: plain_linear(empty(1, 4096), empty(4096, 4096)),
    "plain_linear, 16 rows": lambda target: plain_linear(empty(16, 4096), empty(28672, 4096)),
    "plain_linear, one row, K 1408": lambda target: plain_linear(empty(1, 1408), empty(512, 1408), empty(512)),
    **{f"quantised_linear, {bits} bits, {rows} rows": quantised(bits, rows) for bits in (4, 8) for rows in (16, 64)},
    **{f"quantised_linear, a checkpoint's 4 bits, {rows} rows": quantised(4, rows, scales=FP16) for rows in (16, 64)},
    **{f"quantised_linear, {bits} bits, groups of {group}, {rows} rows": quantised(bits, rows, small=group)
       for bits, group, rows in ((4, 32, 16), (4, 32, 64), (8, 64, 16), (8, 64, 64))},
    **{f"quantised_linear, {bits} bits written out": written_out(bits) for bits in (4, 8)},
    "fp8_linear, rows to FP8": fp8_rows,
}  # fmt: skip

QUICK = {
    "attention decode, D 128, 4 heads a key head",
    "attention prefill, D 128, 4 heads a key head",
    "attention decode, D 256, 16 heads a key head",
    "attention prefill, D 256, 16 heads a key head",
    "attention of many rows, D 128, 4 heads a key head",
    "attention decode, window and soft-cap",
    "attention decode, int8 pages",
    "attention decode, fixed order",
    "attention prefill, fixed order",
    "norm_rope_write, norms, fp8 pages",
    "prepare_batch",
    "sample",
    "quantised_linear, 4 bits, 16 rows",
    "quantised_linear, 8 bits, 64 rows",
    "quantised_linear, 4 bits, groups of 32, 16 rows",
    "fp8_linear, rows to FP8",
    "adjust_logits",
    "token_logprobs",
    "plain_linear, one row",
    "plain_linear, 16 rows",
    "fixed_linear, 2048 rows of 14336",
    "rms_norm, residual",
}
"""What `make test` compiles: at most 120 in all, within two minutes on two cores. What copies or only multiplies
(write_spans, sampling_inputs, append_tokens, silu_mul, a weight written out) is left to the full matrix."""
