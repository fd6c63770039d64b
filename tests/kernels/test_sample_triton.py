"""Sampling by pivot search: the tokens that the reference draws, from few rows, as the interpreter is slow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kernels.sample import workspace_size
from kernels.table import Backend, Ops, ops_for
from tests.kernels.backends import ops_or_skip
from tests.kernels.test_sample import Settings, draw, likely_by_the_book, random_logits, ways


@pytest.fixture
def ops() -> Ops:
    return ops_or_skip(Backend.TRITON)


def test_a_draw_is_the_reference_draw(ops: Ops):
    """Twelve rows at a time, each sampled its own way, over one and several blocks of tokens, in each dtype."""

    @settings(max_examples=12, phases=[Phase.generate], deadline=None, derandomize=True, database=None)
    @given(
        st.lists(ways | st.builds(Settings, temperature=st.just(0.0)), min_size=12, max_size=12),
        st.sampled_from([37, 1024, 2500]),
        st.integers(0, 1000),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    )
    def check(each: list[Settings], vocab: int, seed: int, dtype: torch.dtype) -> None:
        logits = random_logits(12, vocab, seed).to(dtype)
        seeds = torch.arange(12) * 987_654_321_987 - 5
        for row, how in enumerate(each):  # nearer to an edge than that, fp32 may see it either way
            if how.temperature > 0 and likely_by_the_book(logits[row].tolist(), how)[1] < 1e-5:
                each[row] = Settings(how.temperature, how.top_k, 1.0, how.min_p)
        assert torch.equal(draw(ops, logits, each, seeds, 3), draw(ops_for(Backend.TORCH), logits, each, seeds, 3))

    check()


@pytest.mark.parametrize(
    ("how", "stay"),
    [(Settings(top_k=2), {0, 1, 2, 3, 4}), (Settings(top_p=0.5), {0, 1, 2}), (Settings(top_p=0.4), {0, 1})],
    ids=str,
)
def test_equal_logits_at_the_edge_stay_together_for_top_k_and_go_by_id_for_top_p(
    ops: Ops, how: Settings, stay: set[int]
):
    """Of five equal tokens, over 40 seeds: those that stay are all drawn, the others never."""
    assert set(draw(ops, torch.zeros(40, 5), how, torch.arange(40)).tolist()) == stay


def test_equal_logits_are_counted_across_blocks(ops: Ops):
    """Of 3,000 equal tokens top-p 0.6 keeps the first 1,800, which lie in two blocks."""
    ids = draw(ops, torch.zeros(12, 3000), Settings(top_p=0.6), torch.arange(12))
    assert int(ids.max()) < 1800
    assert int(ids.max()) > 1024


def test_a_banned_token_is_not_drawn(ops: Ops):
    """Neither greedily nor by chance; its neighbour row keeps it, and the caller's logits are as they were."""
    logits = torch.zeros(40, 4)
    logits[:, 2] = 5.0
    banned = (torch.arange(0, 40, 2), torch.full((20,), 2))
    greedy = draw(ops, logits, Settings(temperature=0.0), 0, banned=banned)
    assert greedy[::2].tolist() == [0] * 20
    assert greedy[1::2].tolist() == [2] * 20
    assert 2 not in draw(ops, logits, Settings(temperature=3.0), torch.arange(40), banned=banned)[::2].tolist()
    assert logits[0, 2] == 5.0


def test_a_row_is_drawn_the_same_in_any_company(ops: Ops):
    """Alone, in another order, and with scratch of the caller's that holds NaN."""
    logits = random_logits(6, 1500)
    each = [Settings(0.8, 50 * (r % 2), (1.0, 0.9)[r // 2 % 2], 0.01 * (r % 3)) for r in range(6)]
    seeds = torch.arange(6) * 10**12
    together = draw(ops, logits, each, seeds)
    for some in ([0], [3], [5, 2], [4, 3, 2, 1, 0]):
        scratch = torch.full((workspace_size(len(some), 1500),), float("nan"))
        ids = draw(ops, logits[some], [each[r] for r in some], seeds[some], workspace=scratch)
        assert torch.equal(ids, together[some])
