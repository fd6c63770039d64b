"""Staged changes of state: every word of every span where it belongs, and no other word touched."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.conftest import OpsFor, examples

STATE = 5000


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(where, length) of spans that don't meet: pieces between some cuts of the state, empty ones too."""
    ends = sorted(draw(st.lists(st.integers(0, STATE), max_size=12)))
    return [(start, end - start) for start, end in zip(ends[::2], ends[1::2], strict=False)]


def test_spans_write_their_words_and_nothing_else(ops_of: OpsFor):
    """Spans of any length, in any order, against a loop; the words lie at the end of one tensor, in another order."""

    @examples(ops_of, 40)
    @given(cuts(), st.randoms(use_true_random=False))
    def check(spans: list[tuple[int, int]], random: object) -> None:
        words = torch.arange(1, STATE + 1, dtype=torch.int32)
        order = list(range(len(spans)))
        random.shuffle(order)  # type: ignore[attr-defined]
        first, firsts = 3 * len(spans), {}
        for at in order:
            firsts[at] = first
            first += spans[at][1]
        heads = [(where, firsts[at], length) for at, (where, length) in enumerate(spans)]
        packed = torch.cat(
            [
                torch.tensor(heads, dtype=torch.int32).flatten(),
                *(words[spans[at][0] : spans[at][0] + spans[at][1]] for at in order),
            ]
        ).int()
        state = torch.zeros(STATE, dtype=torch.int32)
        ops_of(torch.float32).write_spans(state, packed, len(spans))
        expected = torch.zeros(STATE, dtype=torch.int32)
        for where, length in spans:
            expected[where : where + length] = words[where : where + length]
        assert torch.equal(state, expected)

    check()
