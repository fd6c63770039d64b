"""RowTable: what every seat of the batch holds, as tensors that live as long as the engine.

A sequence owns one row until it ends or is preempted, and a batch is an index of rows. All that a row holds is
rebuilt from parameters, prompt ids and output ids: admit, resume and takeover are one path. Between steps rows change
by deltas only.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.prepare_batch import FlatBatch
from kernels.table import Ops
from worker.engine.plan import Plan
from worker.engine.sequence import Sequence

Place = tuple[Sequence, int]
"""Where a token is drawn: a sequence, and the token's place in its output."""


class RowTable:
    """Tokens, lengths, pages and sampling values of max_rows rows."""

    def __init__(self, ops: Ops, max_rows: int, max_len: int, page_size: int) -> None:
        self.ops, self._page_size = ops, page_size
        self.tokens = torch.zeros(max_rows, max_len, dtype=torch.int32)
        self.computed = torch.zeros(max_rows, dtype=torch.int64)
        self.page_table = torch.zeros(max_rows, -(-max_len // page_size), dtype=torch.int32)
        self._num_pages = [0] * max_rows
        self._prompt_len = torch.zeros(max_rows, dtype=torch.int64)
        # numpy is ten times as fast as torch at setting an element, three times at picking some
        self._tokens_np, self._pages_np = self.tokens.numpy(), self.page_table.numpy()
        self._computed_np = self.computed.numpy()
        self._temperature = np.zeros(max_rows, np.float32)
        self._top_k = np.zeros(max_rows, np.int64)
        self._top_p = np.ones(max_rows, np.float32)
        self._min_p = np.zeros(max_rows, np.float32)
        self._seed = np.zeros(max_rows, np.int64)

    def admit(self, sequence: Sequence) -> None:
        """Write all that the sequence's row holds."""
        row, params = sequence.row, sequence.params
        assert row is not None
        self._tokens_np[row, : sequence.num_tokens] = np.fromiter(
            (*sequence.prompt, *sequence.output), np.int32, sequence.num_tokens
        )
        self._num_pages[row] = 0
        self._write_new_pages(sequence)
        self._prompt_len[row] = len(sequence.prompt)
        self._temperature[row], self._seed[row] = params.temperature, params.seed
        self._top_k[row], self._top_p[row], self._min_p[row] = params.top_k, params.top_p, params.min_p

    def append(self, sequences: Items[Sequence]) -> None:
        """Write the newest output token of those that have a row."""
        for sequence in sequences:
            if sequence.row is not None:
                at = len(sequence.prompt) + len(sequence.output) - 1
                self._tokens_np[sequence.row, at] = sequence.output[-1]

    def batch(self, plan: Plan) -> FlatBatch:
        """The flat batch of a plan; logits of those that catch up, in the plan's order.

        Drafts are written behind a row's tokens, where what is drawn takes their place; behind the last token and each
        draft logits are wanted.
        """
        sequences = list(plan.tokens)
        for sequence, found in plan.drafts.items():
            self._tokens_np[sequence.row, sequence.num_tokens : sequence.num_tokens + len(found)] = found
        for sequence in plan.grown:
            self._write_new_pages(sequence)
        rows = np.array([s.row for s in sequences], np.int64)
        self._computed_np[rows] = [s.computed for s in sequences]
        batch = self.ops.prepare_batch(
            self.tokens,
            self.computed,
            self.page_table,
            torch.from_numpy(rows),
            torch.from_numpy(np.array(list(plan.tokens.values()), np.int64)),
            torch.from_numpy(places_in(plan)),
            page_size=self._page_size,
            num_decode=plan.num_decode,
            pad_tokens=ladder(plan.num_tokens),
            pad_logits=ladder(len(plan.caught_up)),
        )
        return replace(batch, logits_index=_logits_index(plan)) if plan.drafts else batch

    def sample(self, logits: Tensor, places: list[Place], *, exact_noise: bool) -> Tensor:
        """Ids [L] int64 from logits [L or more, vocab], one row for each of `places`, padding after them."""
        logits = logits[: len(places)]
        rows = np.array([s.row for s, _ in places])
        return self.ops.sample(
            logits,
            torch.from_numpy(self._temperature[rows]),
            torch.from_numpy(self._top_k[rows]),
            torch.from_numpy(self._top_p[rows]),
            torch.from_numpy(self._min_p[rows]),
            torch.from_numpy(self._seed[rows]),
            torch.tensor([offset for _, offset in places]),
            banned=_banned(places, logits.shape[1]),
            exact_noise=exact_noise,
        )

    def ends(self, places: list[Place]) -> tuple[Tensor, Tensor]:
        """[L] int64 each: where in its row the output of each place begins, and where the place itself is."""
        first = self._prompt_len[torch.tensor([s.row for s, _ in places])]
        return first, first + torch.tensor([offset for _, offset in places])

    def _write_new_pages(self, sequence: Sequence) -> None:
        row = sequence.row
        assert row is not None
        known, pages = self._num_pages[row], sequence.pages
        if known < len(pages):
            self._pages_np[row, known : len(pages)] = pages[known:]
            self._num_pages[row] = len(pages)


def ladder(count: int) -> int:
    """The length that `count` tokens or logits are padded to: one of some fifty up to 512, a quarter more at most.

    Never 1: a product of a lone row may differ in its last bit from the same row among others.
    """
    if count <= 16:
        return max(2, count) if count else 0
    step = 4 if count <= 64 else 16 if count <= 256 else 32
    return -(-count // step) * step


def places_in(plan: Plan) -> NDArray[np.int64]:
    """Which of the plan's rows, by number, catch up."""
    if len(plan.caught_up) == len(plan.tokens):
        return np.arange(len(plan.tokens))
    wanted = set(map(id, plan.caught_up))
    return np.array([at for at, s in enumerate(plan.tokens) if id(s) in wanted], np.int64)


def places_of(plan: Plan) -> list[Place]:
    """Where a step draws tokens: behind the last token of each that catches up, and behind each of its drafts."""
    if not plan.drafts:
        return [(s, len(s.output)) for s in plan.caught_up]
    return [(s, len(s.output) + ahead) for s in plan.caught_up for ahead in range(len(plan.drafts.get(s, ())) + 1)]


def _logits_index(plan: Plan) -> Tensor:
    """Flat positions of those places, padded."""
    wanted = set(map(id, plan.caught_up))
    index: list[int] = []
    end = 0
    for sequence, count in plan.tokens.items():
        end += count
        if id(sequence) in wanted:
            index += range(end - 1 - len(plan.drafts.get(sequence, ())), end)
    return torch.tensor(index + [0] * (ladder(len(index)) - len(index)))


def is_early(sequence: Sequence, offset: int) -> bool:
    """Whether the sequence may not end with the token at `offset` of its output."""
    return offset < sequence.params.min_tokens and bool(sequence.params.stop_ids)


def _banned(places: list[Place], vocab_size: int) -> tuple[Tensor, Tensor] | None:
    """Stop ids where the sequence may not end yet, as (index into places, token); only those that can come."""
    pairs = [
        (i, t)
        for i, (s, offset) in enumerate(places)
        if is_early(s, offset)
        for t in s.params.stop_ids
        if 0 <= t < vocab_size
    ]
    if not pairs:
        return None
    rows, tokens = torch.tensor(pairs).unbind(1)
    return rows, tokens
