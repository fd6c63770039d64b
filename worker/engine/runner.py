"""Runners: a plan's tokens become K/V, and of sequences that have caught up the next token.

PlainRunner is the plain loop, where rows lie in the host's memory and a launched step is a finished one. DeviceRunner
(device_runner.py) keeps rows on a device, so that the next step can be launched before this one's tokens are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor

from kernels.kv_scales import KvScales
from worker.engine.adjustments import Adjustments, Asked, Logprob
from worker.engine.devices import HostDevice
from worker.engine.plan import Plan
from worker.engine.rows import Place, RowTable, places_of
from worker.engine.sequence import Sequence
from worker.models.decoder import Decoder

Drawn = tuple[int, bool, Logprob | None]
"""A token's id, whether its logit is finite, and its log-probability if its sequence asks for that."""


@dataclass(frozen=True, slots=True)
class Draws:
    """A step's tokens: one for each of plan.caught_up; where the plan has drafts, one behind the sequence's last token
    and behind each of them."""

    ids: list[int]
    sound: list[bool] | None  # whether their logits are finite; None: all are
    told: list[Logprob | None] | None  # log-probabilities; None: nobody asks for any

    def each(self) -> Iterator[Drawn]:
        """One by one."""
        return zip(self.ids, self.sound or repeat(True), self.told or repeat(None), strict=False)


Read = Callable[[], Draws]
"""Waits for a step and gives its tokens."""


class Runner(Protocol):
    """What the engine asks of whatever runs its steps. Steps are computed in the order in which they are launched."""

    def launch(self, plan: Plan) -> Read:
        """Begin a step, rows of plan.admitted written anew."""
        ...

    def appended(self, sequences: Items[Sequence]) -> None:
        """A step was read. Those of these that still have a row have a new last token, one that was drawn in it."""
        ...

    def restore(self, sequences: Items[Sequence]) -> None:
        """A launch failed half-way: write the rows of these anew before the next."""
        ...


class PlainRunner:
    """Steps one after the other, rows in the host's memory."""

    def __init__(
        self, decoder: Decoder, rows: RowTable, kv: Tensor, *, exact_noise: bool, kv_scales: KvScales | None = None
    ) -> None:
        """kv [layers, pages, 2, Hkv, page_size, D] and its scales as Decoder.forward takes them."""
        self._decoder, self._rows, self._exact_noise = decoder, rows, exact_noise
        self._pages = (kv,) if kv_scales is None else (kv, kv_scales)
        vocab_size = decoder.config.vocab_size
        self._adjustments = Adjustments(rows.ops, len(rows.tokens), vocab_size, HostDevice(), kv.device)

    def launch(self, plan: Plan) -> Read:
        """See Runner. The step is done when this returns."""
        self._write(plan.admitted)
        logits = self._decoder.forward(self._rows.batch(plan), *self._pages)
        if not plan.caught_up:
            return lambda: Draws([], None, None)
        places = places_of(plan)
        ids = self._rows.sample(logits, places, exact_noise=self._exact_noise)
        sound = torch.isfinite(logits[: len(ids)].gather(1, ids.unsqueeze(1)).squeeze(1))
        asked = self._adjustments.of(places)
        told = None if asked is None else self._adjust(asked, logits, places, ids, sound)
        flags = sound.tolist()
        return lambda: Draws(ids.tolist(), None if all(flags) else flags, told)

    def _adjust(
        self, asked: Asked, logits: Tensor, places: list[Place], ids: Tensor, sound: Tensor
    ) -> list[Logprob | None]:
        """Draw anew what is to be drawn from other logits than the model's; the log-probabilities asked for."""
        if asked.draws is not None and asked.seats is not None:
            again = [places[at] for at in asked.again]
            first, ends = self._rows.ends(again)
            adjusted = self._adjustments.adjusted(logits, asked, self._rows.tokens, first, ends)
            drawn = self._rows.sample(adjusted, again, exact_noise=self._exact_noise)
            self._adjustments.drew(asked, drawn)
            ids[asked.draws] = drawn
            sound[asked.draws] = torch.isfinite(adjusted.gather(1, drawn.unsqueeze(1)).squeeze(1))
        return asked.spread(self._adjustments.logprobs(logits, ids, asked), len(places))

    def appended(self, sequences: Items[Sequence]) -> None:
        """See Runner."""
        self._rows.append(sequences)

    def restore(self, sequences: Items[Sequence]) -> None:
        """See Runner."""
        self._write(sequences)

    def _write(self, sequences: Items[Sequence]) -> None:
        """Write all that the rows of these hold."""
        for sequence in sequences:
            self._rows.admit(sequence)
            self._adjustments.admit(sequence)
