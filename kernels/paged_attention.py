"""Attention over pages: of decode rows (one query token each) and of prefill chunks (ragged, with a cached prefix).

    out[t, h] = sum_s softmax_s(cap(scale * q[t, h] . K[s, g])) V[s, g],   g = h // (Hq / Hkv)

over the keys s of the token's own row with s <= its position and, with a window w, s > position - w; cap(x) is
c * tanh(x / c) with a soft-cap c, else x. Pages as in PagedAttention (arXiv 2309.06180); the query heads of a K/V head
are taken together (GQA, arXiv 2305.13245) so each page is read once.

Two orders. The fast one hands groups of rows of like length to SDPA. The fixed one (`deterministic`) treats each query
token alone, walks its keys in blocks of KEY_BLOCK with an online softmax in fp32, and multiplies matrices of one
shape only, so a token's result depends neither on the batch nor on whether decode or prefill computed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.kv_scales import KvScales
from kernels.prepare_batch import FlatBatch

KEY_BLOCK = 64
"""Keys a step of the fixed order; a multiple of every page size it supports."""

_GROWTH = 1.5  # a group's longest row is at most this much longer than its shortest: bounds the padding it pays for
_SCORES = 1 << 24  # most scores of one prefill group, to bound its mask and scratch
_EXACT_TOKENS = 256  # query tokens the fixed order works on at a time, to bound its scratch


class AttentionWorkspace(Protocol):
    """attention_workspace(batch, kv_shape, heads, deterministic, out=None) -> workspace, which a step's layers share.

    kv_shape is (pages, 2, Hkv, page_size, D), heads is Hq. Opaque to the caller, of use to the same backend's attention
    only, and valid until the step ends. out: an earlier step's workspace, whose memory may be taken over.
    """

    def __call__(
        self, batch: FlatBatch, kv_shape: tuple[int, ...], heads: int, /, *, deterministic: bool, out: Any = None
    ) -> Any: ...


class Attention(Protocol):
    """decode_attention / prefill_attention(q, kv, batch, workspace, out, scale, ...): fills their part of out.

    q, out     [T, Hq, D] model dtype; decode reads and writes [:num_decode], prefill the rest
    kv         [pages, 2, Hkv, page_size, D] KV dtype, the step's own K/V already written; slots past a row's length
               may hold anything, NaN too
    workspace  of attention_workspace for this batch
    scale      factor on the scores; window: keys seen counting the token itself, or None; soft_cap or None
    kv_scales  what stored values are multiplied by, or None: see kernels/kv_scales.py

    Padding rows (no token in this step) are left alone: what their part of out holds stays.
    """

    def __call__(
        self,
        q: Tensor,
        kv: Tensor,
        batch: FlatBatch,
        workspace: Any,
        out: Tensor,
        /,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        kv_scales: KvScales | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class _Group:
    """Rows of like length, padded to one rectangle: r rows, Q query tokens, P pages, N = P * page_size keys."""

    tokens: Tensor  # [r, Q] flat token of each query; padding repeats the row's last
    query_pos: Tensor  # [r, Q] its position
    seq_lens: Tensor  # [r]
    gather: Tensor  # [2*r*Hkv*P] rows of kv seen as [pages*2*Hkv, page_size*D]
    page_size: int
    kv_heads: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window

    @cached_property
    def last_page(self) -> Tensor:
        return torch.div(self.seq_lens - 1, self.page_size, rounding_mode="floor")  # [r]

    @cached_property
    def beyond(self) -> tuple[Tensor, Tensor]:
        """(row, page) of the pages past a row's last: copies of its first, which may hold anything past its length."""
        pages = torch.arange(
            self.gather.shape[0] // (2 * self.kv_heads * len(self.seq_lens)), device=self.gather.device
        )
        row, page = (pages > self.last_page.unsqueeze(1)).nonzero().unbind(1)
        return row, page

    @cached_property
    def tail(self) -> Tensor:
        """[r, 1, 1, page_size, 1]: the slots of the last page that lie past the row's length."""
        place = torch.arange(self.page_size, device=self.seq_lens.device) + (self.last_page * self.page_size).unsqueeze(
            1
        )
        return (place >= self.seq_lens.unsqueeze(1)).view(-1, 1, 1, self.page_size, 1)

    def mask(self, window: int | None, dtype: torch.dtype, heads: int) -> Tensor:
        """[r, 1, heads*Q, N] additive: 0 where the key is seen, -inf elsewhere. Same for all layers of a window."""
        if window not in self.masks:
            count = self.gather.shape[0] // (2 * self.kv_heads * len(self.seq_lens)) * self.page_size
            keys = torch.arange(count, device=self.gather.device)
            hidden = keys > self.query_pos.unsqueeze(-1)  # [r, Q, N]
            if window is not None:
                hidden |= keys <= self.query_pos.unsqueeze(-1) - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            mask = mask.masked_fill_(hidden, float("-inf")).unsqueeze(1)
            Q = mask.shape[2]
            self.masks[window] = mask if Q == 1 else mask.repeat(1, 1, heads, 1)
        return self.masks[window]

    def load(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [r, Hkv, N, D], contiguous, with zeros past the row's length."""
        page_size, D = kv.shape[-2:]
        got = kv.view(-1, page_size * D).index_select(0, self.gather)
        got = got.view(2, len(self.seq_lens), self.kv_heads, -1, page_size, D)
        rows = torch.arange(len(self.seq_lens), device=kv.device)
        at = (slice(None), rows, slice(None), self.last_page)
        got[at] = got[at].masked_fill(self.tail, 0.0)
        row, page = self.beyond
        if row.numel():
            got[:, row, :, page] = 0.0
        k, v = got.flatten(3, 4).unbind(0)
        return k, v


@dataclass(frozen=True)
class _TorchWorkspace:
    """Groups of decode rows and of prefill rows; empty lists where the fixed order is used."""

    deterministic: bool
    decode: list[_Group]
    prefill: list[_Group]


def attention_workspace_torch(
    batch: FlatBatch, kv_shape: tuple[int, ...], heads: int, /, *, deterministic: bool, out: Any = None
) -> _TorchWorkspace:
    """Reference: see AttentionWorkspace. Takes nothing over: what it holds follows from the batch's lengths.

    Raises ValueError if deterministic and the page size does not divide KEY_BLOCK.
    """
    _, _, kv_heads, page_size, _ = kv_shape
    if deterministic:
        if KEY_BLOCK % page_size:
            raise ValueError(f"deterministic attention takes page sizes that divide {KEY_BLOCK}; got {page_size}")
        return _TorchWorkspace(True, [], [])
    query_lens = batch.query_start[1:] - batch.query_start[:-1]
    rows = torch.arange(len(query_lens), device=query_lens.device)

    def groups(part: Tensor) -> list[_Group]:
        return [_group(batch, rows, query_lens, page_size, kv_heads) for rows in _alike(batch, part, query_lens)]

    decode = _known(batch)
    return _TorchWorkspace(False, groups(rows[:decode]), groups(rows[decode:]))


def _known(batch: FlatBatch) -> int:
    """How many rows decode. Waits for the device where only that knows."""
    if batch.num_decode is not None:
        return batch.num_decode
    assert batch.decodes is not None
    return int(batch.decodes)


def _alike(batch: FlatBatch, rows: Tensor, query_lens: Tensor) -> Iterator[Tensor]:
    """Split rows into groups of like size."""
    order = rows[torch.argsort(query_lens[rows] * (1 << 32) + batch.seq_lens[rows])]
    lens = list(zip(order.tolist(), query_lens[order].tolist(), batch.seq_lens[order].tolist(), strict=True))
    group: list[int] = []
    q_min = q_max = s_min = s_max = 0
    for row, q, s in lens:
        if not q:
            continue  # padding
        q_new, s_low, s_new = max(q, q_max), min(s, s_min or s), max(s, s_max)
        fits = q_new <= (q_min or q) * _GROWTH and s_new <= s_low * _GROWTH + 64
        if group and (not fits or (len(group) + 1) * q_new * s_new > _SCORES):
            yield torch.tensor(group, device=rows.device)
            group, q_min, q_new, s_low, s_new = [], q, q, s, s
        group.append(row)
        q_min, q_max, s_min, s_max = q_min or q, q_new, s_low, s_new
    if group:
        yield torch.tensor(group, device=rows.device)


def _group(batch: FlatBatch, rows: Tensor, query_lens: Tensor, page_size: int, kv_heads: int) -> _Group:
    seq_lens, q_lens, device = batch.seq_lens[rows], query_lens[rows], rows.device
    step = torch.minimum(torch.arange(int(q_lens.max()), device=device).unsqueeze(0), q_lens.unsqueeze(1) - 1)  # [r, Q]
    page = torch.arange((int(seq_lens.max()) + page_size - 1) // page_size, device=device).unsqueeze(0)  # [1, P]
    table = batch.page_table[rows, : page.shape[1]].long()
    table = torch.where(page * page_size < seq_lens.unsqueeze(1), table, table[:, :1])  # padding repeats a real page
    side = torch.arange(2, device=device).view(2, 1, 1, 1)
    head = torch.arange(kv_heads, device=device).view(1, 1, kv_heads, 1)
    return _Group(
        tokens=batch.query_start[rows].unsqueeze(1) + step,
        query_pos=(seq_lens - q_lens).unsqueeze(1) + step,
        seq_lens=seq_lens,
        gather=((table.view(1, len(rows), 1, -1) * 2 + side) * kv_heads + head).flatten(),
        page_size=page_size,
        kv_heads=kv_heads,
    )


def decode_attention_torch(
    q: Tensor,
    kv: Tensor,
    batch: FlatBatch,
    workspace: Any,
    out: Tensor,
    /,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: KvScales | None = None,
) -> None:
    """Reference: see Attention. Fills out[:num_decode]."""
    tokens = slice(0, min(_known(batch), batch.num_tokens))
    _attend(q, kv, batch, workspace, workspace.decode, tokens, out, scale, window, soft_cap, kv_scales)


def prefill_attention_torch(
    q: Tensor,
    kv: Tensor,
    batch: FlatBatch,
    workspace: Any,
    out: Tensor,
    /,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: KvScales | None = None,
) -> None:
    """Reference: see Attention. Fills out[num_decode:]."""
    tokens = slice(_known(batch), batch.num_tokens)
    _attend(q, kv, batch, workspace, workspace.prefill, tokens, out, scale, window, soft_cap, kv_scales)


def _attend(
    q: Tensor,
    kv: Tensor,
    batch: FlatBatch,
    workspace: _TorchWorkspace,
    groups: list[_Group],
    tokens: slice,
    out: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    kv_scales: KvScales | None,
) -> None:
    if workspace.deterministic or soft_cap is not None or kv_scales is not None:
        for start in range(tokens.start, tokens.stop, _EXACT_TOKENS):
            part = slice(start, min(start + _EXACT_TOKENS, tokens.stop))
            out[part] = _fixed_order(q[part], kv, batch, part, scale, window, soft_cap, kv_scales)
        return
    D, kv_heads = q.shape[-1], kv.shape[2]
    G = q.shape[1] // kv_heads
    for group in groups:
        r, Q = group.tokens.shape
        k, v = group.load(kv)
        picked = q[group.tokens].view(r, Q, kv_heads, G, D).permute(0, 2, 3, 1, 4).reshape(r, kv_heads, G * Q, D)
        mask = group.mask(window, q.dtype, G)
        got = F.scaled_dot_product_attention(picked, k, v, attn_mask=mask, scale=scale)
        out[group.tokens] = got.view(r, kv_heads, G, Q, D).permute(0, 3, 1, 2, 4).reshape(r, Q, kv_heads * G, D)


def _fixed_order(
    q: Tensor,
    kv: Tensor,
    batch: FlatBatch,
    part: slice,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    kv_scales: KvScales | None,
) -> Tensor:
    """The query tokens `part`, each alone, keys in blocks of KEY_BLOCK. q [n, Hq, D]; returns [n, Hq, D]."""
    _, _, kv_heads, page_size, D = kv.shape
    device = q.device
    n, G, pages_a_block = q.shape[0], q.shape[1] // kv_heads, max(1, KEY_BLOCK // page_size)
    block = pages_a_block * page_size
    place = torch.arange(part.start, part.stop, device=device)
    row = torch.searchsorted(batch.query_start, place, right=True) - 1  # [n]
    pos = batch.positions[part]
    lone = n * kv_heads == 1
    if lone:  # one matrix alone may be cut among threads and summed in another order; two never are (measured)
        n, q, row, pos = 2, q.expand(2, -1, -1), row.expand(2), pos.expand(2)
    wide = (q.float() * scale).view(n * kv_heads, G, D)
    top = torch.full((n * kv_heads, G, 1), float("-inf"), device=device)
    total = torch.zeros(n * kv_heads, G, 1, device=device)
    acc = torch.zeros(n * kv_heads, G, D, device=device)
    side = torch.arange(2, device=device).view(2, 1, 1, 1)
    head = torch.arange(kv_heads, device=device).view(1, 1, kv_heads, 1)
    for start in range(0, int(pos.max()) + 1, block):
        page = start // page_size + torch.arange(pages_a_block, device=device)
        table = batch.page_table[row.unsqueeze(1), page.clamp(max=batch.page_table.shape[1] - 1)].long()
        index = ((table.view(1, n, 1, -1) * 2 + side) * kv_heads + head).flatten()
        k, v = kv.view(-1, page_size * D).index_select(0, index).view(2, n * kv_heads, block, D).float().unbind(0)
        if isinstance(kv_scales, Tensor):
            factors = kv_scales.view(-1, page_size).index_select(0, index).view(2, n * kv_heads, block, 1)
            k, v = k * factors[0], v * factors[1]
        elif kv_scales is not None:
            k, v = k * kv_scales[0], v * kv_scales[1]
        keys = start + torch.arange(block, device=device)
        seen = keys <= pos.unsqueeze(1)  # [n, block]
        if window is not None:
            seen &= keys > pos.unsqueeze(1) - window
        seen = seen.repeat_interleave(kv_heads, 0)
        scores = torch.bmm(wide, k.transpose(1, 2))  # [n*Hkv, G, block]
        if soft_cap is not None:
            scores = torch.tanh(scores / soft_cap) * soft_cap
        scores = scores.masked_fill(~seen.unsqueeze(1), float("-inf"))
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        steady = higher.masked_fill(higher == float("-inf"), 0.0)  # nothing seen yet: exp(-inf - 0) is 0, not NaN
        weights = torch.exp(scores - steady)
        fade = torch.exp(top - steady)
        total = total * fade + weights.sum(-1, keepdim=True)
        acc = acc * fade + torch.bmm(weights, v.masked_fill(~seen.unsqueeze(-1), 0.0))
        top = higher
    out = (acc / total).to(q.dtype).view(n, kv_heads * G, D)
    return out[:1] if lone else out
