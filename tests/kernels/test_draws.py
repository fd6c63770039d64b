"""What stands before and behind a draw: seats' settings and bars against loops, tokens behind their rows' others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.conftest import OpsFor, examples

SEATS, STOPS, VOCAB, MAX_LEN = 7, 3, 40, 12
NOBODY = SEATS - 1


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """(owners, lens, seats): rows in any order, padding behind them; some of their seats are drawn for."""
    rows = draw(st.lists(st.integers(0, NOBODY - 1), unique=True, max_size=NOBODY))
    lens = draw(st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows)))
    padding = draw(st.integers(0, 15))
    seats = [draw(st.sampled_from([row, NOBODY])) for row in rows] + [NOBODY] * draw(st.integers(0, 20))
    return rows + [NOBODY] * padding, lens + [0] * padding, seats


def test_a_draw_gets_what_its_seat_holds_and_no_stop_id_too_early(ops_of: OpsFor):
    """Against loops: tokens of this step are counted first, a seat that gets none is read as it is, and
    no logit but those of stop ids before min_tokens changes."""

    @examples(ops_of, 60)
    @given(steps(), st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
    def check(step: tuple[list[int], list[int], list[int]], seed: int, dtype: torch.dtype) -> None:
        owners, lens, seats = step
        generator = torch.Generator().manual_seed(seed)
        wholes = torch.randint(0, 10, (5, SEATS), generator=generator)
        wholes[3] *= -(10**15)
        reals = torch.rand(3, SEATS, generator=generator)
        stops = torch.randint(-2, VOCAB, (SEATS, STOPS), generator=generator, dtype=torch.int32)
        logits = torch.randn(len(seats), VOCAB + 8, generator=generator).to(dtype)[:, :VOCAB]
        expected, counted = logits.clone(), wholes.clone()
        for owner, count in zip(owners, lens, strict=True):
            counted[0, owner] += count
        for row, seat in enumerate(seats):
            if counted[0, seat] - counted[1, seat] < counted[4, seat]:
                for stop in stops[seat].tolist():
                    if stop >= 0:
                        expected[row, stop] = -math.inf
        rows = [torch.tensor(numbers, dtype=torch.int64) for numbers in (owners, lens, seats)]
        got = ops_of(dtype).sampling_inputs(wholes, reals, stops, *rows, logits)
        temperature, top_k, top_p, min_p, seeds, offset = (each.tolist() for each in got)
        assert [temperature, top_p, min_p] == reals[:, seats].tolist()
        assert [top_k, seeds, offset] == [*counted[2:4, seats].tolist(), (counted[0] - counted[1])[seats].tolist()]
        assert torch.equal(wholes, counted)
        assert torch.equal(logits, expected)

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_goes_behind_its_rows_others_and_padding_into_nobodys(ops_of: OpsFor, dtype: torch.dtype):
    """More draws than a program takes; only the token drawn is asked for its logit, which may be anything."""
    seats = torch.tensor([4, 0, 2, *[NOBODY] * 17, 5])
    ids = torch.arange(21) % VOCAB
    computed = torch.tensor([3, 0, MAX_LEN - 1, 1, 7, 2, 0])
    logits = torch.full((21, VOCAB), math.nan, dtype=dtype)
    logits[torch.arange(21), ids] = torch.linspace(-9, 9, 21).to(dtype)
    logits[0, 0], logits[1, 1], logits[2, 2] = math.inf, -math.inf, math.nan
    tokens = torch.full((SEATS, MAX_LEN), -7, dtype=torch.int32)
    result = ops_of(dtype).append_tokens(tokens, computed, seats, logits, ids)
    assert result.tolist() == [ids.tolist(), [0, 0, 0, *[1] * 18]]
    expected = torch.full_like(tokens, -7)
    for row, seat in enumerate(seats.tolist()):
        expected[seat, computed[seat]] = ids[row]
    assert int(tokens[NOBODY, 0]) in ids[3:20]
    tokens[NOBODY, 0] = expected[NOBODY, 0]
    assert torch.equal(tokens, expected)
