"""Runners: a plan's tokens become K/V, and of sequences that have caught up the next token.

PlainRunner is the plain loop, where rows lie in the host's memory and a launched step is a finished one. DeviceRunner
(device_runner.py) keeps rows on a device, so that the next step can be launched before this one's tokens are read.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Protocol

import torch
from torch import Tensor

from worker.engine.rows import RowTable, places_of
from worker.engine.scheduler import Plan
from worker.engine.sequence import Sequence
from worker.models.decoder import Decoder

Read = Callable[[], list[tuple[int, bool]]]
"""Waits for a step and gives its tokens: the id drawn for each that was sampled, and whether its logit is finite. Where
the plan has drafts, an id behind the sequence's last token and behind each of them."""


class Runner(Protocol):
    """What the engine asks of whatever runs its steps. Steps are computed in the order in which they are launched."""

    def launch(self, plan: Plan, sampled: Items[Sequence]) -> Read:
        """Begin a step, rows of plan.admitted written anew; `sampled` are those that catch up in it, in its order."""
        ...

    def appended(self, sequence: Sequence) -> None:
        """The sequence has a new last token, one that was drawn."""
        ...

    def restore(self, sequences: Items[Sequence]) -> None:
        """A launch failed half-way: write the rows of these anew before the next."""
        ...


class PlainRunner:
    """Steps one after the other, rows in the host's memory."""

    def __init__(self, decoder: Decoder, rows: RowTable, kv: Tensor, *, exact_noise: bool) -> None:
        """kv [layers, pages, 2, Hkv, page_size, D] model dtype."""
        self._decoder, self._rows, self._kv, self._exact_noise = decoder, rows, kv, exact_noise

    def launch(self, plan: Plan, sampled: Items[Sequence]) -> Read:
        """See Runner. The step is done when this returns."""
        for sequence in plan.admitted:
            self._rows.admit(sequence)
        wanted = list(sampled)
        logits = self._decoder.forward(self._rows.batch(plan, wanted), self._kv)
        if not wanted:
            return list
        ids = self._rows.sample(logits, places_of(plan, wanted), exact_noise=self._exact_noise)
        sound = torch.isfinite(logits[: len(ids)].gather(1, ids.unsqueeze(1)).squeeze(1))
        return lambda: list(zip(ids.tolist(), sound.tolist(), strict=True))

    def appended(self, sequence: Sequence) -> None:
        """See Runner."""
        self._rows.append(sequence)

    def restore(self, sequences: Items[Sequence]) -> None:
        """See Runner."""
        for sequence in sequences:
            self._rows.admit(sequence)
