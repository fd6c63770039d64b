"""DeviceRunner: rows stay on the device and a drawn token goes straight into its row, so that the next step can be
launched before the host has read this one's tokens.

Every step is padded to one of some shapes (step_shape.py), and all its inputs lie in fixed places: a device may keep it
as a graph. Whether there is a GPU is the Device's matter (devices.py): on a CPU the same steps run with nothing to
capture and nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.kv_scales import KvScales
from kernels.table import Ops
from worker.engine.adjustments import Adjustments, Asked, Logprob, pack
from worker.engine.devices import Device
from worker.engine.plan import Plan
from worker.engine.row_state import STOPS, RowState
from worker.engine.rows import places_in
from worker.engine.runner import Draws, Read
from worker.engine.sequence import Sequence
from worker.engine.step_shape import DRAWS, StepShape, step_shapes
from worker.models.decoder import Decoder

Banned = tuple[Tensor, Tensor]


class DeviceRunner:
    """See Runner. Everything of a launch is queued on the device; only what `launch` returns waits for it."""

    def __init__(
        self,
        decoder: Decoder,
        ops: Ops,
        device: Device,
        kv: Tensor,
        max_rows: int,
        max_len: int,
        most_tokens: int,
        *,
        exact_noise: bool,
        kv_scales: KvScales | None = None,
    ) -> None:
        """kv [layers, pages, 2, Hkv, page_size, D] and its scales as Decoder.forward takes them.
        most_tokens: of any plan."""
        self._decoder, self._ops, self._device = decoder, ops, device
        self.kv, self.kv_scales = kv, kv_scales
        self._page_size, self._exact_noise = kv.shape[4], exact_noise
        self._max_pages = -(-max_len // self._page_size)
        self._decodes, self._others = step_shapes(max_rows, most_tokens, alone=not exact_noise)
        self.largest = self._others[-1]
        self.state = RowState(self.largest.rows + 1, max_len, self._max_pages, kv.device)
        self._pages_there = [0] * max_rows
        vocab_size, where = decoder.config.vocab_size, kv.device
        # of the latest step
        self._logits = torch.empty(self.largest.rows, vocab_size, dtype=decoder.dtype, device=where)
        self._adjustments = Adjustments(ops, self.state.nobody + 1, vocab_size, device, where, padded_to=DRAWS)
        self._adjustments.take_memory()
        self._barred_wide = set[int]()  # seats that bar more stop ids than they hold
        self._placed: _Placed | None = None  # the decode step that is staged or in its place, if it is one

    def launch(self, plan: Plan) -> Read:
        """See Runner."""
        for sequence in plan.admitted:
            self._write(sequence)
        for sequence in plan.grown:
            self._write_new_pages(sequence)
        placed = self._placed
        if (
            placed is None
            or plan.admitted
            or placed.sequences != list(plan.tokens)
            or plan.caught_up != placed.sequences
        ):
            shape, chosen = self._place(plan)
        else:  # as a rule the step before was of the same decodes
            shape, chosen = placed.shape, placed.chosen
        asked = None
        if self._adjustments.are_asked:
            asked = self._adjustments.of([(s, s.num_output) for s in plan.caught_up], chosen.tolist())
        self._flush()
        banned = self._wide_bans(plan.caught_up, chosen) if self._barred_wide else None
        result = self._device.run(shape, self.run) if banned is None else self.run(shape, banned)
        return self._read(result, chosen, asked)

    def _place(self, plan: Plan) -> tuple[StepShape, NDArray[np.int64]]:
        """Stage a plan's inputs. Returns its shape, and which of its rows catch up."""
        sequences, lens = list(plan.tokens), np.array(list(plan.tokens.values()), np.int64)
        rows, chosen = np.array([s.row for s in sequences], np.int64), places_in(plan)
        only_decodes = plan.num_decode == len(rows)
        if only_decodes:
            shape = next(shape for shape in self._decodes if shape.rows >= len(rows))
        else:
            shape = next(shape for shape in self._others if shape.tokens >= plan.num_tokens)
        self._stage(shape, rows, lens, chosen)
        if only_decodes and len(chosen) == len(rows):
            self._placed = _Placed(sequences, shape, chosen)
        return shape, chosen

    def run(self, shape: StepShape, banned: Banned | None = None) -> Tensor:
        """Compute a step from the inputs in their places. Returns [2, draws] int64: ids, and whether their logits are
        finite. No call here may wait for the device."""
        state, R, L = self.state, shape.rows, shape.draws
        batch = self._ops.prepare_batch(
            state.tokens,
            state.computed,
            state.page_table,
            state.rows[:R],
            state.lens[:R],
            state.logits_rows[:L],
            page_size=self._page_size,
            num_decode=R if shape.decodes else None,
            pad_tokens=shape.tokens,
            pad_logits=L,
            num_pages=self._max_pages,
        )
        scales = () if self.kv_scales is None else (self.kv_scales,)
        logits = self._decoder.forward(batch, self.kv, *scales, out=self._logits[:L])
        return self._draw(logits, state.sampled[:L], R, banned)

    def _draw(self, logits: Tensor, seats: Tensor, ran: int, banned: Banned | None = None) -> Tensor:
        """The first `ran` rows of a step have run: count their tokens. Sample a token for each of seats [L], write it
        behind the seat's others, and give [2, L]: see run."""
        state, ops = self.state, self._ops
        inputs = ops.sampling_inputs(
            state.wholes, state.reals, state.stops, state.owners[:ran], state.lens[:ran], seats, logits
        )
        ids = ops.sample(logits, *inputs, banned=banned, exact_noise=self._exact_noise)
        return ops.append_tokens(state.tokens, state.computed, seats, logits, ids)

    def _adjust(self, result: Tensor, asked: Asked) -> Tensor:
        """After a step, which may have been a graph: draw again, from its logits, what asks for adjusted ones, and
        write that over what was drawn. Returns [2 L + n] int64: the result's ids and whether their logits are finite,
        then the log-probabilities asked for as Asked.unpack takes them."""
        state, logits = self.state, self._logits[: result.shape[1]]
        if asked.draws is not None and asked.seats is not None:
            computed, prompt_len = state.wholes[:2].index_select(1, asked.seats)
            adjusted = self._adjustments.adjusted(logits, asked, state.tokens, prompt_len, computed)
            drawn = self._draw(adjusted, asked.seats, 0)
            self._adjustments.drew(asked, drawn[0])
            real = len(asked.again)  # the rest is padding
            result.index_copy_(1, asked.draws[:real], drawn[:, :real])
        told = self._adjustments.logprobs(logits, result[0], asked)
        return result.view(-1) if told is None else torch.cat((result.view(-1), pack(told)))

    def rest(self) -> None:
        """Let a step's inputs be padding alone: any step may be run then, and does nothing to anyone."""
        nothing = np.zeros(0, np.int64)
        self._stage(self.largest, nothing, nothing, nothing)
        self.state.stage_input("logits_rows", np.zeros(self.largest.draws, np.int64))  # which every shape has
        self._flush()

    @property
    def shapes(self) -> list[StepShape]:
        """All that steps are padded to."""
        return [*self._decodes, *self._others]

    def warm_up(self) -> None:
        """Run steps of every shape, over padding, so that all is compiled."""
        self.rest()
        for shape in self.shapes:
            self.run(shape)
        self.run_largest()

    def run_largest(self) -> None:
        """A step that takes the most memory a step may take, over padding (after `rest`)."""
        result = self.run(self.largest)
        for logprobs in (0, 1):
            self._adjust(result, self._adjustments.everything(self.largest.draws, logprobs))

    def appended(self, sequences: Items[Sequence]) -> None:
        """See Runner: the step that drew them has written them."""

    def restore(self, sequences: Items[Sequence]) -> None:
        """See Runner."""
        self._device.relieve()
        self.state.forget_staged()
        self._placed = None
        for sequence in sequences:
            self._write(sequence)

    def _read(self, result: Tensor, places: NDArray[np.int64], asked: Asked | None) -> Read:
        """The draws at `places` of a result, once it is there, and what they ask for."""
        if asked is None:
            fetched = self._device.fetch(result)
            return lambda: _drawn(fetched(), places, None)
        L, fetched = result.shape[1], self._device.fetch(self._adjust(result, asked))

        def read_all() -> Draws:
            got = fetched()
            told = asked.spread(asked.unpack(got[2 * L :]), L)
            return _drawn(got[: 2 * L].view(2, L), places, [told[at] for at in places])

        return read_all

    def _write(self, sequence: Sequence) -> None:
        """Stage all that the sequence's seat holds."""
        self._adjustments.admit(sequence)
        seat, params, state = sequence.row, sequence.params, self.state
        assert seat is not None
        assert sequence.pending == 0, "a token that only the device knows would be lost"
        stops = self._stops(sequence)
        few = len(stops) <= STOPS
        state.stage_wholes(
            seat,
            sequence.computed,
            len(sequence.prompt),
            params.top_k,
            params.seed,
            params.min_tokens if few and stops else 0,
        )
        state.stage_reals(seat, params.temperature, params.top_p, params.min_p)
        if few and stops:
            state.stage_row("stops", seat, 0, np.array([*stops, *[-1] * (STOPS - len(stops))], np.int32))
        tokens = np.fromiter((*sequence.prompt, *sequence.output), np.int32, sequence.num_tokens)
        state.stage_row("tokens", seat, 0, tokens)
        self._pages_there[seat] = 0
        self._write_new_pages(sequence)
        (self._barred_wide.discard if few else self._barred_wide.add)(seat)

    def _write_new_pages(self, sequence: Sequence) -> None:
        seat = sequence.row
        assert seat is not None
        there, pages = self._pages_there[seat], sequence.pages
        if there + 1 == len(pages):  # as a rule
            self.state.stage_word("page_table", seat, there, pages[there])
        elif there < len(pages):
            self.state.stage_row("page_table", seat, there, np.array(pages[there:], np.int32))
        self._pages_there[seat] = len(pages)

    def _stage(
        self, shape: StepShape, rows: NDArray[np.int64], lens: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> None:
        """Stage a step's inputs, padded; `chosen` of its rows keep what is drawn, others' goes to nobody's seat."""
        self._placed = None
        nobody, R, L = self.state.nobody, shape.rows, shape.draws
        sampled = np.full(L, nobody)
        sampled[chosen] = rows[chosen]
        self.state.stage_input("rows", _padded(rows, R, -1))
        self.state.stage_input("owners", _padded(rows, R, nobody))
        self.state.stage_input("lens", _padded(lens, R, 0))
        self.state.stage_input("logits_rows", np.minimum(np.arange(L), R - 1))
        self.state.stage_input("sampled", sampled)

    def _flush(self) -> None:
        """Bring what is staged to the device."""
        staged = self.state.staged()
        if staged is not None:
            packed, count = staged
            self._ops.write_spans(self.state.words, self._device.upload(packed), count)

    def _stops(self, sequence: Sequence) -> list[int]:
        """Stop ids that can come, where the sequence may be too young to end; none where they are barred in _adjust."""
        params, vocab = sequence.params, self._decoder.config.vocab_size
        return [t for t in params.stop_ids if 0 <= t < vocab] if params.min_tokens and not params.is_redrawn else []

    def _wide_bans(self, sampled: Items[Sequence], draws: NDArray[np.int64]) -> Banned | None:
        """Stop ids of sequences that may not end yet and have more of them than a seat holds, as (draw, token)."""
        pairs: list[tuple[int, int]] = []
        for at, sequence in zip(draws.tolist(), sampled, strict=True):
            if sequence.params.min_tokens and sequence.num_output < sequence.params.min_tokens:
                stops = self._stops(sequence)
                pairs += [(at, token) for token in stops] if len(stops) > STOPS else []
        if not pairs:
            return None
        at, tokens = self._device.upload(np.array(pairs, np.int32).T.copy()).long()
        return at, tokens


@dataclass(frozen=True)
class _Placed:
    """Decodes whose inputs are in their places: each sequence adds one token and catches up, in its shape's rows."""

    sequences: list[Sequence]
    shape: StepShape
    chosen: NDArray[np.int64]


def _drawn(result: Tensor, places: NDArray[np.int64], told: list[Logprob | None] | None) -> Draws:
    """The draws at `places` of a result [2, L], with their log-probabilities."""
    ids, sound = result.numpy()[:, places]
    return Draws(ids.tolist(), None if sound.all() else (sound != 0).tolist(), told)


def _padded(values: NDArray[np.int64], count: int, padding: int) -> NDArray[np.int64]:
    return np.concatenate([values, np.full(count - len(values), padding, np.int64)])
