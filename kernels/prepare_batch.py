"""From rows to the flat batch: which ids go in, at which positions, into which slots.

Reads the state that lives on the device for as long as a row is owned, and a step's plan: row indices and how many
tokens each adds. Decode rows come first; the caller orders them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FlatBatch:
    """One step's inputs, T tokens of R rows laid end to end, decode rows (one token each) first, padding last."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, page * page_size + place in it; -1: padding, whose values mean nothing
    query_start: Tensor  # [R+1] int64, where each row's tokens begin
    seq_lens: Tensor  # [R] int64, tokens of the row after this step; 0: a padding row, which stands after all others
    page_table: Tensor  # [R, P] int32, P = pages of the longest row of the batch or more; past a row's pages anything
    logits_index: Tensor  # [L] int64, flat positions whose logits are wanted, then padding (any position)
    num_decode: int | None  # rows in front that add one token, padding too if there are no others; None: decodes
    decodes: Tensor | None = None  # [1] int64: how many add one token, where the device alone knows

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows, padding not counted. Asks the device, and waits for it."""
        return int(self.query_start[-1])


class PrepareBatch(Protocol):
    """prepare_batch(tokens, computed, page_table, rows, query_lens, num_decode, logits_rows, ...) -> FlatBatch.

    tokens      [max_rows, max_len] int32: each row's prompt and output ids
    computed    [max_rows] int64: how many of them have their K/V in the pages; += query_lens is the caller's
    page_table  [max_rows, max_pages] int32
    rows        [R] int64, query_lens [R] int64 (>= 1), logits_rows [L] int64 (indices into rows). A negative row is
                padding, after all others; its query_lens is 0, and its logits are those of any token
    page_size   tokens a page
    num_decode  how many rows in front add exactly one token; None: those of one token, which the device counts
    pad_tokens, pad_logits  lengths to pad T and L to: few distinct shapes, so products and graphs are made once
    num_pages   P; None: the pages of the longest row
    out         an earlier batch of the same sizes, whose tensors are filled anew, or None: new tensors

    Without pad_tokens (which then must not be less than there are tokens) or num_pages a backend on a device has to
    wait for the device to know its sizes.
    """

    def __call__(
        self,
        tokens: Tensor,
        computed: Tensor,
        page_table: Tensor,
        rows: Tensor,
        query_lens: Tensor,
        logits_rows: Tensor,
        /,
        *,
        page_size: int,
        num_decode: int | None,
        pad_tokens: int = 0,
        pad_logits: int = 0,
        num_pages: int | None = None,
        out: FlatBatch | None = None,
    ) -> FlatBatch: ...


def prepare_batch_torch(
    tokens: Tensor,
    computed: Tensor,
    page_table: Tensor,
    rows: Tensor,
    query_lens: Tensor,
    logits_rows: Tensor,
    /,
    *,
    page_size: int,
    num_decode: int | None,
    pad_tokens: int = 0,
    pad_logits: int = 0,
    num_pages: int | None = None,
    out: FlatBatch | None = None,
) -> FlatBatch:
    """Reference: see PrepareBatch. Counts those of one token itself, and waits for it."""
    R, device = rows.shape[0], rows.device
    if num_decode is None:
        num_decode = int((query_lens == 1).sum())
    start = computed[rows]
    padded = R > 0 and int(rows[-1]) < 0
    if padded:
        start = start.masked_fill(rows < 0, 0)
    seq_lens = start + query_lens
    if num_pages is None:
        num_pages = (int(seq_lens.max()) + page_size - 1) // page_size
    pages = page_table[rows, :num_pages]
    query_start = torch.zeros(R + 1, dtype=torch.int64, device=device)
    torch.cumsum(query_lens, 0, out=query_start[1:])
    if num_decode == R and not padded:
        place, positions = torch.arange(R, device=device), start
    else:
        place = torch.repeat_interleave(torch.arange(R, device=device), query_lens)  # [T], the batch row of each token
        positions = start[place] + torch.arange(place.shape[0], device=device) - query_start[place]
    page = torch.div(positions, page_size, rounding_mode="floor")
    slots = pages[place, page].long() * page_size + (positions - page * page_size)
    more, more_logits = max(0, pad_tokens - len(place)), max(0, pad_logits - len(logits_rows))
    made = FlatBatch(
        input_ids=F.pad(tokens[rows[place], positions].long(), (0, more)),
        positions=F.pad(positions, (0, more)),
        slot_mapping=F.pad(slots, (0, more), value=-1),
        query_start=query_start,
        seq_lens=seq_lens,
        page_table=pages,
        logits_index=F.pad((query_start[1:][logits_rows] - 1).clamp(min=0), (0, more_logits)),
        num_decode=num_decode,
    )
    if out is None:
        return made
    for name in ("input_ids", "positions", "slot_mapping", "query_start", "seq_lens", "page_table", "logits_index"):
        getattr(out, name).copy_(getattr(made, name))
    return replace(out, num_decode=num_decode)
