"""Adjustments: what some sequences ask for beside being sampled: bias, allowed tokens, penalties, bad words; and
log-probabilities.

In: a step's logits as the model gave them, and the ids drawn from them in the ordinary way. Out: the logits of those
that ask for it, in fp32 and adjusted, to be drawn from again; and log-probabilities by the logits before all that.
Others' logits are not looked at, so they pay nothing and are the same as without such neighbours.

What each seat has had (the tokens of its prompt, how often its output has each) lies where the rows lie. It is written
anew from prompt and output ids when a seat changes hands, and counts on where a token is drawn, whether or not the host
has seen that token yet. Knows neither batches nor how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.adjust_logits import Penalties
from kernels.likeliest import likeliest
from kernels.table import Ops
from worker.engine.devices import Device
from worker.engine.rows import Place, is_early
from worker.engine.sequence import MOST_LOGPROBS, Sequence, SequenceParams

_TOLD_AT_ONCE = 16  # rows whose likeliest tokens are looked for: a bound on memory, 40 bytes a token of the vocabulary

Logprob = tuple[float, list[int], list[float]]
"""A token's log-probability, the likeliest ids in its place, and theirs: as many as the sequence asks for."""


@dataclass(frozen=True)
class _Words:
    """Runs of ids whose last is barred where the others stand before it. [B] each, `before` [B, W] from the right."""

    draws: Tensor
    seats: Tensor
    before: Tensor  # negative: nothing is asked of that place
    last: Tensor


@dataclass(frozen=True)
class Asked:
    """What a step's draws ask for. Tensors on the device, int64 unless said; lists on the host.

    again      those of the draws that are drawn again, from adjusted logits
    draws      [A]: the same, padded; None where there are none;  seats [A]: theirs, nobody's for padding
    bias       (draw among the A [B], token [B], value [B] fp32) or None
    penalties  repetition, presence, frequency: [A] fp32 each
    words      bad words of two tokens or more, or None
    banned     (draw among the A [B], token [B]): stop ids of those that may not end yet, or None
    told       [P]: the draws whose log-probabilities are asked for, or None;  where: the same
    tops       of how many of the likeliest each of these asks them
    """

    again: list[int]
    draws: Tensor | None
    seats: Tensor | None
    bias: tuple[Tensor, Tensor, Tensor] | None
    penalties: tuple[Tensor, Tensor, Tensor] | None
    words: _Words | None
    banned: tuple[Tensor, Tensor] | None
    told: Tensor | None
    where: list[int]
    tops: list[int]

    def spread(self, told: tuple[Tensor, Tensor] | None, count: int) -> list[Logprob | None]:
        """For each of `count` draws what `Adjustments.logprobs` gave for it, as plain values."""
        each: list[Logprob | None] = [None] * count
        if told is not None:
            logprobs, ids = told
            for at, most, values, top in zip(self.where, self.tops, logprobs.tolist(), ids.tolist(), strict=True):
                each[at] = values[0], top[:most], values[1 : 1 + most]
        return each

    def unpack(self, numbers: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `pack` was given, from its numbers in the host's memory."""
        if self.told is None:
            return None
        rows = numbers.view(len(self.where), -1)
        width = (rows.shape[1] + 1) // 2
        return rows[:, :width].to(torch.int32).view(torch.float32), rows[:, width:]


def pack(told: tuple[Tensor, Tensor]) -> Tensor:
    """What `Adjustments.logprobs` gives as int64 numbers in a row, so that it comes over with the ids."""
    logprobs, ids = told
    return torch.cat((logprobs.view(torch.int32).long(), ids), 1).view(-1)


class _Histories:
    """What seats have had and may have: see Penalties; allowed [seats, ceil(V / 32)] int32, bits as in_prompt's."""

    def __init__(self, seats: int, vocab_size: int, device: torch.device) -> None:
        words = -(-vocab_size // 32)
        self.in_prompt = torch.zeros(seats, words, dtype=torch.int32, device=device)
        self.allowed = torch.zeros(seats, words, dtype=torch.int32, device=device)
        self.counts = torch.zeros(seats, vocab_size, dtype=torch.int32, device=device)


class Adjustments:
    """What the seats of a batch ask for, and what they have had."""

    def __init__(
        self, ops: Ops, seats: int, vocab_size: int, device: Device, where: torch.device, padded_to: int = 1
    ) -> None:
        """The last seat is nobody's where draws are padded (to a multiple). Memory for histories, 4 bytes for each seat
        and token of the vocabulary, is taken with the first sequence that needs it, or by `take_memory`."""
        self._ops, self._seats, self._vocab_size, self._device, self._where = ops, seats, vocab_size, device, where
        self._padded_to = padded_to
        self._params: dict[int, SequenceParams] = {}  # of seats that ask for anything
        self._stays = dict[int, int]()  # by seat: which of its stays this is
        self._histories: _Histories | None = None
        self._asked: tuple[object, Asked] | None = None  # of the step before: as a rule the next asks for the same

    def take_memory(self) -> _Histories:
        """Have memory for histories, from now on at the latest."""
        if self._histories is None:
            self._histories = _Histories(self._seats, self._vocab_size, self._where)
        return self._histories

    def admit(self, sequence: Sequence) -> None:
        """The sequence has a seat: write what it has had and may have."""
        seat, params = sequence.row, sequence.params
        assert seat is not None
        if not params.is_redrawn and params.logprobs is None:
            self._params.pop(seat, None)
            return
        self._params[seat] = params
        self._stays[seat] = self._stays.get(seat, 0) + 1
        if not params.is_redrawn:
            return
        histories = self.take_memory()
        histories.allowed[seat] = self._uploaded(_allowed_bits(params, self._vocab_size))
        if params.penalises:
            histories.in_prompt[seat] = self._uploaded(_bits(sequence.prompt, self._vocab_size))
            counts = histories.counts[seat].zero_()
            if sequence.output:
                said = self._uploaded(np.array(sequence.output, np.int32)).long()
                counts.index_add_(0, said, torch.ones_like(said, dtype=torch.int32))

    @property
    def are_asked(self) -> bool:
        """Whether any seat asks for anything."""
        return bool(self._params)

    def of(self, places: list[Place], draws: Items[int] | None = None) -> Asked | None:
        """What the draws of a step ask for; None: nothing. draws: which of them each place is; else in their order."""
        if not self._params:
            return None
        asking = [
            (at if draws is None else draws[at], seat, self._stays[seat], is_early(sequence, offset))
            for at, (sequence, offset) in enumerate(places)
            if (seat := sequence.row) in self._params
        ]
        if not asking:
            return None
        if self._asked is None or self._asked[0] != asking:
            self._asked = asking, self._ask([(at, seat, early, self._params[seat]) for at, seat, _, early in asking])
        return self._asked[1]

    def everything(self, draws: int, logprobs: int) -> Asked:
        """All that draws can ask for, by `draws` of them that are nobody's."""
        params = SequenceParams(
            1, logit_bias=((0, 0.0),), bad_words=((0, 0),), presence_penalty=1.0, logprobs=logprobs, min_tokens=1,
            stop_ids=frozenset({0}),
        )  # fmt: skip
        return self._ask([(at, self._seats - 1, True, params) for at in range(draws)])

    def adjusted(self, logits: Tensor, asked: Asked, tokens: Tensor, first: Tensor, ends: Tensor) -> Tensor:
        """[A, V] fp32: the logits [L, V] of asked.draws, adjusted.

        tokens [seats, max_len]: what rows hold; first, ends [A] int64: where in its row each draw's output begins, and
        where the token drawn will be.
        """
        assert asked.draws is not None
        assert asked.seats is not None
        assert asked.penalties is not None
        histories = self.take_memory()
        rows = logits.index_select(0, asked.draws).float()
        self._ops.adjust_logits(
            rows,
            bias=asked.bias,
            allowed=histories.allowed.index_select(0, asked.seats),
            penalties=Penalties(asked.seats, histories.in_prompt, histories.counts, *asked.penalties),
        )
        if asked.words is not None:
            _bar_words(rows, asked.words, tokens, first, ends)
        if asked.banned is not None:
            rows.index_put_(asked.banned, torch.full((), float("-inf"), device=rows.device))
        return rows

    def drew(self, asked: Asked, ids: Tensor) -> None:
        """ids [A] int64 were drawn from adjusted logits: count them."""
        assert asked.seats is not None
        counts = self.take_memory().counts
        places = asked.seats * counts.shape[1] + ids
        counts.view(-1).index_add_(0, places, torch.ones_like(ids, dtype=torch.int32))

    def logprobs(self, logits: Tensor, ids: Tensor, asked: Asked) -> tuple[Tensor, Tensor] | None:
        """([P, 1 + n] fp32, [P, n] int64): log-probabilities of the ids [L] of asked.told and of the n likeliest, and
        these; n is MOST_LOGPROBS, or 0 where nobody asks for any. By the logits [L, V] as they are."""
        if asked.told is None:
            return None
        most = min(MOST_LOGPROBS, self._vocab_size) if any(asked.tops) else 0
        parts = [self._logprobs(logits, ids, draws, most) for draws in torch.split(asked.told, _TOLD_AT_ONCE)]
        return torch.cat([values for values, _ in parts]), torch.cat([top for _, top in parts])

    def _logprobs(self, logits: Tensor, ids: Tensor, draws: Tensor, most: int) -> tuple[Tensor, Tensor]:
        rows, own = logits.index_select(0, draws), ids.index_select(0, draws).unsqueeze(1)
        if not most:
            return self._ops.token_logprobs(rows, own), own[:, :0]
        top = likeliest(rows, most)
        return self._ops.token_logprobs(rows, torch.cat((own, top), 1)), top

    def _ask(self, asking: list[tuple[int, int, bool, SequenceParams]]) -> Asked:
        """Bring over what these draws ask for: (draw, seat, whether stop ids are barred, params) each."""
        again = [one for one in asking if one[3].is_redrawn]
        told = [(at, params.logprobs) for at, _, _, params in asking if params.logprobs is not None]
        each = [params for *_, params in again]
        bias = [(at, token, value) for at, params in enumerate(each) for token, value in params.logit_bias]
        banned = [
            (at, token)
            for at, (_, _, early, params) in enumerate(again)
            for token in (params.stop_ids if early else ())
            if 0 <= token < self._vocab_size
        ]
        words = [(at, again[at][1], word) for at, one in enumerate(each) for word in one.bad_words if len(word) > 1]
        padding = -len(again) % self._padded_to
        return Asked(
            again=[at for at, *_ in again],
            draws=self._numbers([*(at for at, *_ in again), *[0] * padding]) if again else None,
            seats=self._numbers([*(one[1] for one in again), *[self._seats - 1] * padding]) if again else None,
            bias=self._bias(bias) if bias else None,
            penalties=self._penalties(each, padding) if again else None,
            words=self._words(words) if words else None,
            banned=(self._numbers([at for at, _ in banned]), self._numbers([t for _, t in banned])) if banned else None,
            told=self._numbers([at for at, _ in told]) if told else None,
            where=[at for at, _ in told],
            tops=[most for _, most in told],
        )

    def _bias(self, triples: list[tuple[int, int, float]]) -> tuple[Tensor, Tensor, Tensor]:
        draws, tokens, values = zip(*triples, strict=True)
        return self._numbers(draws), self._numbers(tokens), self._reals(values)

    def _penalties(self, each: list[SequenceParams], padding: int) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self._reals([*(one.repetition_penalty for one in each), *[1.0] * padding]),
            self._reals([*(one.presence_penalty for one in each), *[0.0] * padding]),
            self._reals([*(one.frequency_penalty for one in each), *[0.0] * padding]),
        )

    def _words(self, words: list[tuple[int, int, tuple[int, ...]]]) -> _Words:
        width = max(len(word) for _, _, word in words) - 1
        before = [[-1] * (width - len(word) + 1) + list(word[:-1]) for _, _, word in words]
        return _Words(
            draws=self._numbers([draw for draw, _, _ in words]),
            seats=self._numbers([seat for _, seat, _ in words]),
            before=self._uploaded(np.array(before, np.int32)),
            last=self._numbers([word[-1] for _, _, word in words]),
        )

    def _numbers(self, values: list[int] | tuple[int, ...]) -> Tensor:
        return self._uploaded(np.array(values, np.int32)).long()

    def _reals(self, values: list[float] | tuple[float, ...]) -> Tensor:
        return self._uploaded(np.array(values, np.float32).view(np.int32)).view(torch.float32)

    def _uploaded(self, values: NDArray[np.int32]) -> Tensor:
        return self._device.upload(values)


def _bits(tokens: object, vocab_size: int) -> NDArray[np.int32]:
    """[ceil(V / 32)] int32: bit t % 32 of word t // 32 is set for these."""
    flags = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    flags[np.asarray(tokens, np.int64)] = 1
    return np.packbits(flags, bitorder="little").view("<i4").astype(np.int32)


def _allowed_bits(params: SequenceParams, vocab_size: int) -> NDArray[np.int32]:
    """As _bits has them: what a sequence may draw, bad words of one token ruled out."""
    allowed = range(vocab_size) if params.allowed_token_ids is None else params.allowed_token_ids
    lone = [word[0] for word in params.bad_words if len(word) == 1]
    bits = _bits(allowed, vocab_size)
    return bits & ~_bits(lone, vocab_size) if lone else bits


def _bar_words(rows: Tensor, words: _Words, tokens: Tensor, first: Tensor, ends: Tensor) -> None:
    """-inf in rows [A, V] for the last token of each word whose others are what the output ends with."""
    width = words.before.shape[1]
    places = ends[words.draws].unsqueeze(1) - torch.arange(width, 0, -1, device=rows.device)  # [B, W]
    said = tokens.view(-1)[words.seats.unsqueeze(1) * tokens.shape[1] + places.clamp(min=0)]
    stands = (said == words.before) & (places >= first[words.draws].unsqueeze(1))
    meets = (stands | (words.before < 0)).all(1)
    bar = torch.where(meets, float("-inf"), float("inf")).to(rows.dtype)
    rows.view(-1).scatter_reduce_(0, words.draws * rows.shape[1] + words.last, bar, "amin")
