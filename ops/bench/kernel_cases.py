"""The kernels that are timed: at true shapes, each with the bytes it has to move and the operations it has to do.

Bytes are those that any implementation moves: each input read once, each output written once. What a kernel reads twice
shows as distance from its floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.fp8_linear import Fp8Weight
from kernels.prepare_batch import FlatBatch
from kernels.quantised_linear import QuantisedWeight
from kernels.table import Ops

BF16 = torch.bfloat16


@dataclass(frozen=True)
class Form:
    """What projections are kept as: bytes a weight, scales and zeros among them, and how many times as many products
    a second there are as in bf16."""

    weight_bytes: float
    rate: int = 1


FORMS = {"auto": Form(2.0), "int8": Form(1.0), "int4": Form(0.5 + 4 / 128), "fp8": Form(1.0, rate=2)}
"""By the setting `weights`, of a model in bf16."""


@dataclass(frozen=True)
class Model:
    """The shape of a decoder."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    D: int
    inner: int
    vocab: int
    tied: bool

    @property
    def kv_bytes(self) -> int:
        """Of one token, over all layers, in bf16."""
        return self.layers * 2 * self.kv_heads * self.D * 2

    @property
    def projection_parameters(self) -> int:
        """Weights of the layers' products."""
        qkvo = self.hidden * self.D * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (qkvo + 3 * self.hidden * self.inner)

    @property
    def product_parameters(self) -> int:
        """Weights that a step multiplies with: projections and the head, not the embedding's look-up."""
        return self.projection_parameters + self.hidden * self.vocab

    def step(self, rows: int, context: int, form: Form = FORMS["auto"]) -> tuple[float, float]:
        """(bytes, operations) of a decode step: weights once, each row's K/V once; two operations a weight and row, of
        which twice as many are done a second where the form says so."""
        attention, head = 4 * self.layers * self.heads * self.D * context, self.hidden * self.vocab
        return (
            form.weight_bytes * self.projection_parameters + 2 * head + rows * context * self.kv_bytes,
            rows * (2 * (self.projection_parameters / form.rate + head) + attention),
        )

    def prompt(self, tokens: int, form: Form = FORMS["auto"]) -> tuple[float, float]:
        """(bytes, operations) of a prompt alone, up to its first output token: weights once, each K/V written once."""
        attention = 2 * self.layers * self.heads * self.D * tokens * (tokens + 1)
        head = self.hidden * self.vocab
        return (
            form.weight_bytes * self.projection_parameters + 2 * head + tokens * self.kv_bytes,
            2 * (tokens * self.projection_parameters / form.rate + head) + attention,
        )


LLAMA_8B = Model("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, tied=False)
QWEN_06B = Model("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151936, tied=True)
QWEN_8B = Model("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936, tied=False)
MODELS = (LLAMA_8B, QWEN_06B, QWEN_8B)


@dataclass(frozen=True)
class Case:
    """One kernel at one shape. `make(device)` gives a call of the operation in a table, made anew from equal inputs.

    form: what its weights are; FP8's products count half of bf16's time.
    """

    name: str
    moved: int  # bytes
    flops: int
    make: Callable[[torch.device], Callable[[Ops], Tensor]]
    form: Form = FORMS["auto"]


def cases(model: Model = LLAMA_8B) -> Iterator[Case]:
    """A grid of shapes: what a decode step and a prompt's chunk run of this model."""
    for rows, context in ((1, 2048), (1, 8192), (16, 2048), (64, 2048), (64, 512), (256, 2048)):
        yield decode(model, rows, context)
    for tokens, cached in ((512, 0), (2048, 0), (512, 7680)):
        yield prefill(model, tokens, cached)
    for tokens in (1, 64, 2048):
        yield rms_norm(model, tokens)
        yield silu_mul(model, tokens)
        yield norm_rope_write(model, tokens)
    for rows in (1, 64, 256):
        yield sample(model, rows, 0.0, 1.0)
        yield sample(model, rows, 0.8, 0.95)
    for rows in (1, 16, 64, 256, 2048):
        for bits in (4, 8):
            yield quantised(model, rows, bits)
        yield fp8(model, rows)


def batch_of(rows: int, tokens: int, length: int, page_size: int, device: torch.device) -> FlatBatch:
    """`rows` of `length`, each adding `tokens`; pages in no order."""
    long: dict[str, Any] = {"dtype": torch.int64, "device": device}
    pages = -(-length // page_size)
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(rows * pages, generator=generator).view(rows, pages).int().to(device)
    T = rows * tokens
    positions = (length - tokens + torch.arange(tokens, **long)).repeat(rows)
    nothing = torch.zeros(T, **long)
    start = torch.arange(rows + 1, **long) * tokens
    lens = torch.full((rows,), length, **long)
    return FlatBatch(nothing, positions, nothing, start, lens, table, start[1:] - 1, rows if tokens == 1 else 0)


def _attention(name: str, model: Model, rows: int, tokens: int, length: int, moved: int, flops: int) -> Case:
    page_size = 32

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        batch = batch_of(rows, tokens, length, page_size, device)
        pages = batch.page_table.numel()
        generator = torch.Generator(device).manual_seed(1)
        how: dict[str, Any] = {"dtype": BF16, "device": device, "generator": generator}
        kv = torch.randn(pages, 2, model.kv_heads, page_size, model.D, **how)
        q = torch.randn(rows * tokens, model.heads, model.D, **how)
        out = torch.zeros_like(q)
        work: dict[str, Any] = {}

        def call(ops: Ops) -> Tensor:
            if ops.backend not in work:  # a step's layers share it
                work[ops.backend] = ops.attention_workspace(batch, tuple(kv.shape), model.heads, deterministic=False)
            run = ops.decode_attention if tokens == 1 else ops.prefill_attention
            run(q, kv, batch, work[ops.backend], out, scale=model.D**-0.5)
            return out

        return call

    return Case(name, moved, flops, make)


def decode(model: Model, rows: int, context: int) -> Case:
    """A layer's attention of `rows` decode rows."""
    keys = rows * context * 2 * model.kv_heads * model.D * 2
    moved = keys + rows * 2 * model.heads * model.D * 2
    flops = 4 * rows * context * model.heads * model.D
    return _attention(f"decode attention, {rows} rows of {context}", model, rows, 1, context, moved, flops)


def prefill(model: Model, tokens: int, cached: int) -> Case:
    """A layer's attention of one chunk behind `cached` tokens."""
    seen = tokens * cached + tokens * (tokens + 1) // 2
    moved = (tokens + cached) * 2 * model.kv_heads * model.D * 2 + tokens * 2 * model.heads * model.D * 2
    flops = 4 * seen * model.heads * model.D
    name = f"prefill attention, {tokens} tokens behind {cached}"
    return _attention(name, model, 1, tokens, tokens + cached, moved, flops)


def _random(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, dtype=BF16, device=device, generator=generator)


def rms_norm(model: Model, tokens: int) -> Case:
    """The norm with its residual add: two tensors read, two written."""

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        x, weight = _random(device, tokens, model.hidden), _random(device, model.hidden)
        residual = torch.zeros_like(x)
        return lambda ops: ops.rms_norm(x, weight, 1e-5, residual)

    moved = 4 * tokens * model.hidden * 2
    return Case(f"rms_norm with residual, {tokens} tokens", moved, 0, make)


def silu_mul(model: Model, tokens: int) -> Case:
    """Gate and up read, their product written."""

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        gate_up = _random(device, tokens, 2 * model.inner)
        return lambda ops: ops.silu_mul(gate_up)

    return Case(f"silu_mul, {tokens} tokens", 3 * tokens * model.inner * 2, 0, make)


def norm_rope_write(model: Model, tokens: int) -> Case:
    """All heads read and written, a row of angles for each token."""

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        qkv = _random(device, tokens, (model.heads + 2 * model.kv_heads) * model.D)
        kv = _random(device, tokens // 32 + 1, 2, model.kv_heads, 32, model.D)
        numbers = torch.arange(tokens, device=device)
        angles = torch.ones(tokens, model.D, device=device)
        return lambda ops: ops.norm_rope_write(qkv, kv, numbers, numbers, angles)

    moved = tokens * (2 * (model.heads + 2 * model.kv_heads) * model.D * 2 + model.D * 4)
    return Case(f"norm_rope_write, {tokens} tokens", moved, 0, make)


def sample(model: Model, rows: int, temperature: float, top_p: float) -> Case:
    """Every logit read once."""

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        logits = _random(device, rows, model.vocab)
        numbers = torch.arange(rows, device=device)
        reals = torch.ones(rows, device=device)
        return lambda ops: ops.sample(
            logits, reals * temperature, numbers * 0, reals * top_p, reals * 0, numbers, numbers, exact_noise=True
        )

    how = "greedy" if temperature == 0 else f"temperature {temperature:g}, top-p {top_p:g}"
    return Case(f"sample, {rows} rows, {how}", rows * model.vocab * 2, 0, make)


def quantised(model: Model, rows: int, bits: int) -> Case:
    """The gate-up projection with codes of `bits`, groups of 128; for many rows it is first written out in bf16."""
    K, N, group = model.hidden, 2 * model.inner, 128

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        weight = QuantisedWeight.of(_random(device, N, K, seed=1), bits, group)
        x = _random(device, rows, K)
        return lambda ops: ops.quantised_linear(x, weight)

    scales = K // group * N * 2 * (2 if bits == 4 else 1)  # zeros too
    moved = K * N * bits // 8 + scales + rows * (K + N) * 2
    return Case(f"quantised_linear, {bits} bits, {rows} rows", moved, 2 * rows * K * N, make)


def fp8(model: Model, rows: int) -> Case:
    """The gate-up projection in FP8, rows rounded to it as they come."""
    K, N = model.hidden, 2 * model.inner

    def make(device: torch.device) -> Callable[[Ops], Tensor]:
        amd = torch.version.hip is not None
        weight = Fp8Weight.of(_random(device, N, K, seed=1), torch.float8_e4m3fnuz if amd else torch.float8_e4m3fn)
        x = _random(device, rows, K)
        return lambda ops: ops.fp8_linear(x, weight)

    return Case(f"fp8_linear, {rows} rows", K * N + 4 * N + rows * (K + N) * 2, 2 * rows * K * N, make, FORMS["fp8"])
