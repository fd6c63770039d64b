"""Rows with their keys and values in pages, and what attention over them should give, in plain fp64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kernels.kv_scales import stored, token_scales
from kernels.prepare_batch import FlatBatch
from kernels.table import Ops

NAN = float("nan")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """Of attention: query heads a key head, key heads, elements a head, tokens a page, element type."""

    group: int = 2
    kv_heads: int = 2
    D: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.float32

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads


@dataclass(frozen=True)
class Text:
    """One sequence: a query, key and value for every position."""

    q: Tensor  # [length, Hq, D]
    k: Tensor  # [length, Hkv, D]
    v: Tensor  # [length, Hkv, D]
    k_scale: Tensor | None = None  # [length, Hkv] fp32: what a stored key is multiplied by
    v_scale: Tensor | None = None

    @classmethod
    def random(cls, shape: Shape, length: int, seed: int) -> Text:
        generator = torch.Generator().manual_seed(seed)

        def normal(heads: int) -> Tensor:
            return torch.randn(length, heads, shape.D, generator=generator).to(shape.dtype)

        return cls(normal(shape.heads), normal(shape.kv_heads), normal(shape.kv_heads))

    def narrow(self) -> Text:
        """The same with keys and values as int8 codes, and scales."""
        k_scale, v_scale = (token_scales(x, torch.int8) for x in (self.k, self.v))
        k, v = (stored(x.float() / s.unsqueeze(-1), torch.int8) for x, s in ((self.k, k_scale), (self.v, v_scale)))
        return Text(self.q, k, v, k_scale, v_scale)

    def wide(self) -> tuple[Tensor, Tensor]:
        """Keys and values [length, Hkv, D] fp64, scales multiplied in where they are codes."""
        if self.k.dtype != torch.int8:
            return self.k.double(), self.v.double()
        assert self.k_scale is not None
        assert self.v_scale is not None
        return self.k.double() * self.k_scale.double().unsqueeze(-1), self.v * self.v_scale.double().unsqueeze(-1)


@dataclass(frozen=True)
class Row:
    """A row of a batch: its text up to seq_len, of which the last query_len tokens are this step's."""

    text: Text = field(repr=False)
    seq_len: int
    query_len: int


def run_attention(
    ops: Ops,
    shape: Shape,
    decode: Sequence[Row],
    prefill: Sequence[Row],
    *,
    deterministic: bool = False,
    seed: int = 0,
    device: torch.device = CPU,
    counted: bool = False,
    **how: Any,
) -> list[Tensor]:
    """Each row's [query_len, Hq, D] on the CPU, decode rows first. Pages lie in no order, NaN where no row wrote.

    counted: the device alone knows how many rows decode, and two padding rows stand behind all others.
    """
    rows = [*decode, *prefill]
    kv, page_table = _pages(shape, rows, seed)
    lens = torch.tensor([row.query_len for row in rows])
    seq_lens = torch.tensor([row.seq_len for row in rows])
    query_start = torch.cat([torch.zeros(1, dtype=torch.int64), lens.cumsum(0)])
    positions = torch.cat([torch.arange(row.seq_len - row.query_len, row.seq_len) for row in rows])
    nothing = torch.zeros(len(positions), dtype=torch.int64)  # attention reads neither ids nor slots
    index = query_start[1:] - 1
    numbers = (nothing, positions, nothing, query_start, seq_lens, page_table, index)
    batch = FlatBatch(*(number.to(device) for number in numbers), len(decode))
    if counted:
        batch = _counted(batch)
    q = torch.cat([row.text.q[row.seq_len - row.query_len : row.seq_len] for row in rows])
    q, kv = q.to(device), kv.to(device)
    out = torch.full_like(q, NAN)
    scales = _scales(shape, rows, page_table, kv.shape[0])
    if scales is not None:
        how["kv_scales"] = scales.to(device)
    workspace = ops.attention_workspace(batch, tuple(kv.shape), shape.heads, deterministic=deterministic)
    if decode or counted:
        ops.decode_attention(q, kv, batch, workspace, out, **how)
    if prefill or counted:
        assert out[len(decode) :].isnan().all(), "decode wrote into prefill's part of out"
        ops.prefill_attention(q, kv, batch, workspace, out, **how)
    return list(out.cpu().split(lens.tolist()))


def _counted(batch: FlatBatch) -> FlatBatch:
    assert batch.num_decode is not None
    ends, nobody = batch.query_start[-1:].expand(2), torch.zeros(2, dtype=torch.int64, device=batch.seq_lens.device)
    return replace(
        batch,
        query_start=torch.cat([batch.query_start, ends]),
        seq_lens=torch.cat([batch.seq_lens, nobody]),
        page_table=torch.cat([batch.page_table, batch.page_table.new_zeros(2, batch.page_table.shape[1])]),
        num_decode=None,
        decodes=torch.full((1,), batch.num_decode, dtype=torch.int64, device=batch.seq_lens.device),
    )


def _pages(shape: Shape, rows: Sequence[Row], seed: int) -> tuple[Tensor, Tensor]:
    """K/V pages [pages, 2, Hkv, page_size, D] and page table [R, P]; page 0 is nobody's and all NaN, or -128, which no
    code is."""
    needed = [-(-row.seq_len // shape.page_size) for row in rows]
    order = 1 + torch.randperm(sum(needed), generator=torch.Generator().manual_seed(seed))
    dtype = rows[0].text.k.dtype
    poison = -128 if dtype == torch.int8 else NAN
    kv = torch.full((len(order) + 1, 2, shape.kv_heads, shape.page_size, shape.D), poison, dtype=dtype)
    page_table = torch.zeros(len(rows), max(needed), dtype=torch.int32)
    for index, (row, pages) in enumerate(zip(rows, order.split(needed), strict=True)):
        page_table[index, : len(pages)] = pages.int()
        position = torch.arange(row.seq_len)
        page, place = pages[position // shape.page_size], position % shape.page_size
        kv[page, 0, :, place] = row.text.k[: row.seq_len]
        kv[page, 1, :, place] = row.text.v[: row.seq_len]
    return kv, page_table


def _scales(shape: Shape, rows: Sequence[Row], page_table: Tensor, pages: int) -> Tensor | None:
    """[pages, 2, Hkv, page_size] fp32 where the rows' texts have scales; NaN in slots that no token has."""
    if rows[0].text.k_scale is None:
        return None
    scales = torch.full((pages, 2, shape.kv_heads, shape.page_size), NAN)
    for row, table in zip(rows, page_table, strict=True):
        assert row.text.k_scale is not None
        assert row.text.v_scale is not None
        position = torch.arange(row.seq_len)
        page, place = table[position // shape.page_size].long(), position % shape.page_size
        scales[page, 0, :, place] = row.text.k_scale[: row.seq_len]
        scales[page, 1, :, place] = row.text.v_scale[: row.seq_len]
    return scales


def attention_in_fp64(row: Row, *, scale: float, window: int | None = None, soft_cap: float | None = None) -> Tensor:
    """[query_len, Hq, D] fp64, by the formula at the top of kernels/paged_attention.py."""
    text, first = row.text, row.seq_len - row.query_len
    group = text.q.shape[1] // text.k.shape[1]
    q = text.q[first : row.seq_len].double()
    k, v = (x[: row.seq_len].repeat_interleave(group, 1) for x in text.wide())
    scores = torch.einsum("qhd,shd->hqs", q, k) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    position, key = torch.arange(first, row.seq_len).unsqueeze(1), torch.arange(row.seq_len)
    seen = key <= position
    if window is not None:
        seen &= key > position - window
    return torch.einsum("hqs,shd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
