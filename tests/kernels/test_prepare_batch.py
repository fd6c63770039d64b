"""From rows to the flat batch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.conftest import OpsFor, examples

PAGE_SIZE, MAX_LEN, MAX_ROWS = 16, 100, 6


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[int], int, int]:
    """Rows, how much of each is computed, how much is added (those that add one token first), and who gives logits;
    lengths to pad tokens and logits to."""
    rows = draw(st.lists(st.integers(0, MAX_ROWS - 1), min_size=1, unique=True))
    lens = sorted((draw(st.integers(1, 40)) for _ in rows), key=lambda n: n > 1)
    computed = [draw(st.integers(0, MAX_LEN - n)) for n in lens]
    wanted = draw(st.lists(st.sampled_from(range(len(rows))), unique=True).map(sorted))
    return (
        rows,
        computed,
        lens,
        wanted,
        draw(st.just(0) | st.integers(0, 60).map(sum(lens).__add__)),
        draw(st.integers(0, 8)),
    )


def test_each_token_of_the_plan_is_laid_out_once_with_its_position_and_slot(ops_of: OpsFor):
    """Against loops over rows and tokens; rows that aren't in the plan hold junk that shows nowhere."""

    @examples(ops_of, 60)
    @given(plans(), st.booleans())
    def check(case: tuple[list[int], list[int], list[int], list[int], int, int], counts: bool) -> None:
        rows, computed, lens, wanted, pad_tokens, pad_logits = case
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 1000, (MAX_ROWS, MAX_LEN), generator=generator, dtype=torch.int32)
        pages_a_row = -(-MAX_LEN // PAGE_SIZE)
        page_table = torch.randperm(MAX_ROWS * pages_a_row, generator=generator).view(MAX_ROWS, -1).int()
        done = torch.full((MAX_ROWS,), -999)
        done[rows] = torch.tensor(computed)
        batch = ops_of(torch.float32).prepare_batch(
            tokens,
            done,
            page_table,
            torch.tensor(rows),
            torch.tensor(lens),
            torch.tensor(wanted, dtype=torch.int64),
            page_size=PAGE_SIZE,
            num_decode=None if counts else lens.count(1),
            pad_tokens=pad_tokens,
            pad_logits=pad_logits,
        )
        laid = [
            (row, pos) for row, start, n in zip(rows, computed, lens, strict=True) for pos in range(start, start + n)
        ]
        ends = torch.tensor(lens).cumsum(0).tolist()
        padding = max(0, pad_tokens - len(laid))
        assert batch.num_tokens == len(laid)
        assert batch.input_ids.tolist() == [int(tokens[row, pos]) for row, pos in laid] + [0] * padding
        assert batch.positions.tolist() == [pos for _, pos in laid] + [0] * padding
        assert (
            batch.slot_mapping.tolist()
            == [int(page_table[row, pos // PAGE_SIZE]) * PAGE_SIZE + pos % PAGE_SIZE for row, pos in laid]
            + [-1] * padding
        )
        assert batch.query_start.tolist() == [0, *ends]
        assert batch.seq_lens.tolist() == [start + n for start, n in zip(computed, lens, strict=True)]
        assert batch.page_table.shape == (len(rows), -(-int(batch.seq_lens.max()) // PAGE_SIZE))
        for ours, row, length in zip(batch.page_table, rows, batch.seq_lens.tolist(), strict=True):
            pages = -(-length // PAGE_SIZE)  # past them there may be anything
            assert torch.equal(ours[:pages], page_table[row, :pages])
        assert batch.logits_index.tolist()[: len(wanted)] == [ends[row] - 1 for row in wanted]
        assert len(batch.logits_index) == max(len(wanted), pad_logits)
        assert all(0 <= index < max(1, len(laid)) for index in batch.logits_index.tolist())
        if batch.num_decode is None:  # the device has counted
            assert counts
            assert batch.decodes is not None
            assert batch.decodes.tolist() == [lens.count(1)]
        else:
            assert batch.num_decode == lens.count(1)
        assert batch.input_ids.dtype == batch.positions.dtype == batch.slot_mapping.dtype == torch.int64

    check()
