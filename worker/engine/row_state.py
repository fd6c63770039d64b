"""RowState: what every seat of the batch holds, on the device, in one piece of memory; and the changes it waits for.

All of it is words of 32 bits in one tensor, seen as the tensors below. Changes are staged in the host's memory and
brought over by one copy and one operation before a step (kernels/write_spans.py). One seat more than there are rows
belongs to nobody: padding reads and writes there.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.int32]

STOPS = 8  # stop ids of a sequence that may not end yet, as many as a seat holds
_ALIGNED = 4  # words: parts begin at multiples of 16 bytes, which kernels are compiled for
_SPAN = 4096  # words that one program of the operation copies at most


class RowState:
    """The tensors of `seats` seats (nobody's is the last), and of a step's inputs for up to `seats` rows.

    wholes       [5, seats] int64: computed, prompt_len, top_k, seed, min_tokens
    reals        [3, seats] fp32: temperature, top_p, min_p
    stops        [seats, STOPS] int32: ids barred before min_tokens; negative: none
    tokens       [seats, max_len] int32;  page_table [seats, max_pages] int32
    rows, lens   [seats] int64: a step's rows and how many tokens each adds; padding is a negative row of no tokens
    owners       [seats] int64: the seats of those rows, nobody's for padding
    logits_rows  [seats] int64: which of the rows give logits;  sampled [seats] int64: the seats that get what is drawn
    """

    def __init__(self, seats: int, max_len: int, max_pages: int, device: torch.device) -> None:
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "wholes": (torch.int64, (5, seats)),
            "reals": (torch.float32, (3, seats)),
            "stops": (torch.int32, (seats, STOPS)),
            **dict.fromkeys(("rows", "lens", "owners", "logits_rows", "sampled"), (torch.int64, (seats,))),
            "tokens": (torch.int32, (seats, max_len)),
            "page_table": (torch.int32, (seats, max_pages)),
        }
        self._first: dict[str, int] = {}
        self._widths = {name: shape[-1] for name, (_, shape) in shapes.items()}
        size = 0
        for name, (dtype, shape) in shapes.items():
            self._first[name] = size
            size += -(-_words(dtype, shape) // _ALIGNED) * _ALIGNED
        assert size < 1 << 31, f"{size} words of row state are more than spans can address"
        self.words = torch.zeros(size, dtype=torch.int32, device=device)

        def part(name: str) -> Tensor:
            dtype, shape = shapes[name]
            first = self._first[name]
            return self.words[first : first + _words(dtype, shape)].view(dtype).view(shape)

        self.wholes, self.reals, self.stops = part("wholes"), part("reals"), part("stops")
        self.tokens, self.page_table = part("tokens"), part("page_table")
        self.rows, self.lens, self.owners = part("rows"), part("lens"), part("owners")
        self.logits_rows, self.sampled = part("logits_rows"), part("sampled")
        self.nobody = seats - 1
        self._seats = seats
        self._waiting: dict[int, Words] = {}
        self._lone: dict[int, int] = {}  # words that wait alone
        self._inputs: dict[str, bytes] = {}

    @property
    def computed(self) -> Tensor:
        """[seats] int64: how many of a seat's tokens have their K/V in the pages."""
        return self.wholes[0]

    def stage_wholes(self, seat: int, *values: int) -> None:
        """Write the first of a seat's wholes, as many as there are values."""
        for at, value in enumerate(values):
            self._stage(self._first["wholes"] + 2 * (at * self._seats + seat), np.array([value], np.int64))

    def stage_reals(self, seat: int, *values: float) -> None:
        """Write a seat's reals."""
        for at, value in enumerate(values):
            self._stage(self._first["reals"] + at * self._seats + seat, np.array([value], np.float32))

    def stage_row(self, name: str, seat: int, first: int, values: NDArray[np.int32]) -> None:
        """Write values from column `first` on of a seat's row of `stops`, `tokens` or `page_table`."""
        width = self._widths[name]
        assert first + len(values) <= width, f"{name}: {first + len(values)} values for a row of {width}"
        self._stage(self._first[name] + seat * width + first, values)

    def stage_word(self, name: str, seat: int, at: int, value: int) -> None:
        """Write one value, of 31 bits, to column `at` of a seat's row of `tokens` or `page_table`."""
        width = self._widths[name]
        assert at < width, f"{name}: column {at} of a row of {width}"
        self._lone[self._first[name] + seat * width + at] = value

    def stage_input(self, name: str, values: NDArray[np.int64]) -> None:
        """Write the first values of a step's input, unless they stand there."""
        known = values.tobytes()
        if not self._inputs.get(name, b"").startswith(known):
            self._inputs[name] = known
            self._stage(self._first[name], values)

    def staged(self) -> tuple[Words, int] | None:
        """All that waits, as write_spans takes it, and how many spans; nothing waits afterwards. None: nothing does."""
        if not self._waiting and not self._lone:
            return None
        spans = [(where, at, 1) for at, where in enumerate(self._lone)]
        pieces = [np.array(list(self._lone.values()), np.int32), *self._waiting.values()]
        first = len(spans)
        for where, piece in self._waiting.items():
            for start in range(0, len(piece), _SPAN):
                spans.append((where + start, first + start, min(_SPAN, len(piece) - start)))
            first += len(piece)
        self._waiting, self._lone = {}, {}
        heads = np.array(spans, np.int32)
        heads[:, 1] += heads.size
        return np.concatenate([heads.ravel(), *pieces]), len(spans)

    def forget_staged(self) -> None:
        """Drop all that waits, and take nothing of a step's inputs for known."""
        self._waiting, self._lone, self._inputs = {}, {}, {}

    def _stage(self, where: int, values: NDArray[np.generic]) -> None:
        """Only the last of two changes from one word on counts: a seat that changed hands within a plan."""
        self._waiting[where] = values.view(np.int32)


def _words(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * dtype.itemsize // 4
