"""Sampling: which tokens may be drawn, how often each is, and that a draw depends on its own row alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.sample import candidates, gumbel
from kernels.table import Backend, Ops, ops_for
from tests.kernels.backends import ops_or_skip
from tests.kernels.conftest import OpsFor

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)
NONE = float("-inf")


@dataclass(frozen=True)
class Settings:
    """How one row is sampled."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw(ops: Ops, logits: Tensor, how: Settings | list[Settings], seed: Any, offset: Any = 0, **more: Any) -> Tensor:
    """Ids of all rows of `logits`; seed and offset an integer for all rows, or one for each."""
    rows = len(logits)
    each = how if isinstance(how, list) else [how] * rows

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(one, name) for one in each], dtype=dtype)

    return ops.sample(
        logits,
        column("temperature", torch.float32),
        column("top_k", torch.int64),
        column("top_p", torch.float32),
        column("min_p", torch.float32),
        torch.as_tensor(seed).expand(rows).contiguous(),
        torch.as_tensor(offset).expand(rows).contiguous(),
        **{"exact_noise": True, **more},
    )


def random_logits(rows: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def likely_by_the_book(logits: list[float], how: Settings) -> tuple[dict[int, float], float]:
    """The tokens that may be drawn and their probabilities, in fp64; how near top_p came to an edge."""
    greatest = max(logits)
    weights = {
        token: float(torch.tensor((logit - greatest) / how.temperature, dtype=torch.float64).exp())
        for token, logit in enumerate(logits)
    }
    left = [token for token in weights if weights[token] >= how.min_p]
    left.sort(key=lambda token: (-logits[token], token))
    if how.top_k:
        edge = logits[left[min(how.top_k, len(left)) - 1]]
        left = [token for token in left if logits[token] >= edge]
    total, before, kept, nearest = sum(weights[token] for token in left), 0.0, [], 1.0
    for token in left:
        nearest = min(nearest, abs(before / total - how.top_p))
        if how.top_p < 1 and before / total >= how.top_p:
            break
        kept.append(token)
        before += weights[token]
    return {token: weights[token] / before for token in kept}, nearest


ways = st.builds(
    Settings,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 20, 37, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.03, 0.3]),
)


@few
@given(st.integers(0, 1000), ways)
def test_the_candidates_are_those_by_the_book(seed: int, how: Settings):
    """Min-p, top-k and top-p in this order keep the same tokens as sorted lists in fp64 do."""
    logits = random_logits(1, 37, seed)
    expected, nearest = likely_by_the_book(logits[0].tolist(), how)
    assume(nearest > 1e-5 or how.top_p == 1.0)  # nearer than that, fp32 may see it either way
    kept = candidates(
        logits,
        torch.tensor([how.temperature]),
        torch.tensor([how.top_k]),
        torch.tensor([how.top_p]),
        torch.tensor([how.min_p]),
    )[0]
    assert set(kept.isfinite().nonzero().flatten().tolist()) == set(expected)


def test_equal_logits_at_the_edge_stay_together_for_top_k_and_go_by_id_for_top_p(cpu_ops_of: OpsFor):
    """Five equal tokens: top_k 2 keeps all five, top_p 0.5 the first three; of four, the two that hold just half."""
    logits = torch.zeros(2000, 5)
    ops = cpu_ops_of(torch.float32)
    assert set(draw(ops, logits, Settings(top_k=2), torch.arange(2000)).tolist()) == {0, 1, 2, 3, 4}
    assert set(draw(ops, logits, Settings(top_p=0.5), torch.arange(2000)).tolist()) == {0, 1, 2}
    four = logits[:, :4].contiguous()
    assert set(draw(ops, four, Settings(top_p=0.5), torch.arange(2000)).tolist()) == {0, 1}


@pytest.mark.parametrize(
    "how",
    [
        Settings(),
        Settings(temperature=0.5),
        Settings(temperature=2.0, top_k=7),
        Settings(top_p=0.8),
        Settings(min_p=0.1),
        Settings(temperature=1.5, top_k=9, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
@pytest.mark.parametrize("over", ["seeds", "offsets"])
def test_tokens_are_drawn_as_often_as_they_are_likely(cpu_ops_of: OpsFor, how: Settings, over: str):
    """20,000 draws over consecutive seeds, or offsets of one seed: chi-square below its 0.9999 quantile at most."""
    draws = 20_000
    logits = random_logits(1, 16, seed=5)
    expected, _ = likely_by_the_book(logits[0].tolist(), how)
    places = {"seed": torch.arange(draws)} if over == "seeds" else {"seed": 7, "offset": torch.arange(draws)}
    counts = draw(cpu_ops_of(torch.float32), logits.expand(draws, -1).contiguous(), how, **places).bincount(
        minlength=16
    )
    assert set(counts.nonzero().flatten().tolist()) <= set(expected)
    assert chi_square(counts.tolist(), [expected.get(token, 0.0) for token in range(16)]) < 44.3  # 15 degrees


@pytest.mark.parametrize("over", ["seeds", "offsets"])
def test_neighbouring_draws_know_nothing_of_each_other(cpu_ops_of: OpsFor, over: str):
    """Pairs of tokens at consecutive seeds or offsets are as frequent as their product: chi-square as above."""
    draws = 40_000
    places = {"seed": torch.arange(draws)} if over == "seeds" else {"seed": 7, "offset": torch.arange(draws)}
    ids = draw(cpu_ops_of(torch.float32), torch.zeros(draws, 4), Settings(), **places)
    pairs = (ids[::2] * 4 + ids[1::2]).bincount(minlength=16)
    assert chi_square(pairs.tolist(), [1 / 16] * 16) < 44.3  # 15 degrees


def chi_square(counts: list[int], expected: list[float]) -> float:
    """Tokens expected less than five times count as one, as the statistic asks for."""
    total = sum(counts)
    cells = [(count, total * p) for count, p in zip(counts, expected, strict=True) if p]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if rare:
        cells.append((sum(count for count, _ in rare), sum(mean for _, mean in rare)))
    return sum((count - mean) ** 2 / mean for count, mean in cells)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1000, 4099])
def test_temperature_0_takes_the_greatest_and_of_equals_the_lowest_id(ops_of: OpsFor, dtype: torch.dtype, vocab: int):
    """Whatever else is set, beside rows that are sampled, in vocabularies of any size."""
    logits = random_logits(6, vocab).to(dtype)
    logits[1] = 3.0
    logits[2, vocab // 2 :] = 9.0
    logits[3] = -1e30
    logits[4, -1] = 50.0
    greedy = Settings(temperature=0.0, top_k=1, top_p=0.1, min_p=0.5)
    ids = draw(ops_of(dtype), logits, [greedy] * 5 + [Settings()], 3)
    expected = [min(t for t in range(vocab) if row[t] == row.max()) for row in logits[:5]]
    assert ids[:5].tolist() == expected
    assert 0 <= int(ids[5]) < vocab


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-37, 1e-44])
def test_a_temperature_near_0_takes_the_greatest(ops_of: OpsFor, temperature: float):
    """Also where logits / temperature is beyond fp32, and where all logits are negative."""
    logits = random_logits(2, 50) * 10
    logits[0] += 300
    logits[1] -= 300
    ids = draw(ops_of(torch.float32), logits, Settings(temperature=temperature), 1)
    assert ids.tolist() == logits.argmax(-1).tolist()


def test_a_row_is_drawn_the_same_in_any_company(cpu_ops_of: OpsFor):
    """Alone, among others, in another order, with one to three threads, greedy rows between."""
    rows, vocab = 40, 5003
    ops, logits = cpu_ops_of(torch.float32), random_logits(40, vocab)
    each = [
        Settings((0.0, 0.8, 1.0, 1.7)[r % 4], (0, 50)[r % 2], (1.0, 0.9, 0.99)[r % 3], (0.0, 0.01)[r // 2 % 2])
        for r in range(rows)
    ]
    seed, offset = torch.arange(rows) * 10**12, torch.arange(rows) % 7
    together = draw(ops, logits, each, seed, offset)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for some in (*([r] for r in range(0, rows, 3)), [5, 2], list(range(7, 24)), list(reversed(range(rows)))):
            ids = draw(ops, logits[some], [each[r] for r in some], seed[some], offset[some])
            assert torch.equal(ids, together[some])
    torch.set_num_threads(1)


def test_scores_and_exact_noise_have_the_same_bits_in_any_company():
    """To the last bit, so that no near-tie can fall otherwise in another batch."""
    rows, vocab = 24, 4099
    logits, seed, offset = random_logits(rows, vocab), torch.arange(rows), torch.arange(rows)
    how = (torch.full((rows,), 0.7), torch.full((rows,), 40), torch.full((rows,), 0.9), torch.linspace(0.01, 0.1, rows))
    scores, noise = candidates(logits, *how), gumbel(seed, offset, vocab, exact=True)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for start, stop in ((0, 1), (23, 24), (3, 8), (1, 24)):
            some = slice(start, stop)
            assert torch.equal(candidates(logits[some], *(column[some] for column in how)), scores[some])
            assert torch.equal(gumbel(seed[some], offset[some], vocab, exact=True), noise[some])
    torch.set_num_threads(1)


def test_every_backend_draws_the_same_token():
    """A draw can be made again by a worker of another backend: 4,000 rows, no difference."""
    c = ops_or_skip(Backend.C)
    logits, seed = random_logits(4000, 301), torch.arange(4000) * 987_654_321
    how = Settings(temperature=0.9, top_p=0.95)
    assert torch.equal(draw(c, logits, how, seed, 5), draw(ops_for(Backend.TORCH), logits, how, seed, 5))


def test_logits_in_fp32_are_drawn_from_as_they_are_whatever_the_elements(cpu_ops_of: OpsFor):
    """Adjusted ones are: bf16 would make these equal."""
    logits = torch.ones(3, 700)
    logits[:, 300] += 1e-4
    ways = [Settings(temperature=0.0), Settings(temperature=1e-6), Settings(top_k=1)]
    for dtype in (torch.float32, torch.bfloat16):
        assert draw(cpu_ops_of(dtype), logits, ways, 1).tolist() == [300] * 3


@pytest.mark.parametrize("other", [1, 2**32, -1, -(2**63), 2**63 - 1, 2**33, 2**62])
def test_every_bit_of_a_seed_counts(cpu_ops_of: OpsFor, other: int):
    """Seeds over 2^32 and below 0 draw like any other, and not what seed 0 draws."""
    logits, offset, ops = torch.zeros(50, 1000), torch.arange(50), cpu_ops_of(torch.float32)
    same = draw(ops, logits, Settings(), 0, offset) == draw(ops, logits, Settings(), other, offset)
    assert int(same.sum()) <= 3  # of 50, by chance 1 in 1,000 each


def unmixed(h: int) -> int:
    """What murmur3's 32-bit finaliser takes to h."""
    mask = 0xFFFFFFFF
    h ^= h >> 16
    h = h * pow(0xC2B2AE35, -1, 1 << 32) & mask
    h ^= (h >> 13) ^ (h >> 26)
    h = h * pow(0x85EBCA6B, -1, 1 << 32) & mask
    return h ^ (h >> 16)


def mixed(h: int) -> int:
    mask = 0xFFFFFFFF
    h = (h ^ (h >> 16)) * 0x85EBCA6B & mask
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & mask
    return h ^ (h >> 16)


def offset_that_gives(bits: int, token: int) -> int:
    """The offset at which, with seed 0, the token's 32 random bits are `bits`."""
    key = unmixed(bits) ^ (token * 0x9E3779B1 & 0xFFFFFFFF)
    return unmixed(key) ^ mixed(mixed(0x9747B28C))


@pytest.mark.parametrize("bits", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFF7F, 0xFFFFFF80, 0xFFFFFFFE, 0xFFFFFFFF])
def test_noise_is_finite_for_the_rarest_bits(ops_of: OpsFor, bits: int):
    """The token whose 32 bits are all zeros, all ones or at a rounding edge can still be drawn."""
    token, offset = 5, offset_that_gives(bits, 5)
    right = float(-(-torch.tensor(1 - (bits + 0.5) / 2**32, dtype=torch.float64).log()).log())
    for exact in (False, True):
        noise = gumbel(torch.tensor([0]), torch.tensor([offset]), 20, exact=exact)[0]
        assert noise.isfinite().all()
        # 1 - u is taken as 2^-24 at least, which lifts the least noise there is by 0.32
        assert float(noise[token]) == pytest.approx(right, abs=0.35)
    only = torch.full((1, 20), NONE)
    only[0, token] = -4.0
    assert draw(ops_of(torch.float32), only, Settings(), 0, offset).tolist() == [token]


def test_the_luckiest_bits_win_and_the_unluckiest_lose(ops_of: OpsFor):
    """At equal logits zeros, the greatest noise, beat all others; ones, the least, beat none."""
    ops, logits = ops_of(torch.float32), torch.zeros(1, 20)
    assert draw(ops, logits, Settings(), 0, offset_that_gives(0, 5)).tolist() == [5]
    assert draw(ops, logits, Settings(), 0, offset_that_gives(0xFFFFFFFF, 5)).tolist() != [5]


def test_a_banned_token_is_not_drawn_and_bans_hold_in_their_row_alone(cpu_ops_of: OpsFor):
    """Greedy takes the next best; sampling spreads over the rest; the neighbour keeps the token."""
    logits = torch.zeros(400, 4)
    logits[:, 2] = 5.0
    banned = (torch.arange(0, 400, 2), torch.full((200,), 2))
    ops = cpu_ops_of(torch.float32)
    greedy = draw(ops, logits, Settings(temperature=0.0), 0, banned=banned)
    assert greedy[::2].tolist() == [0] * 200
    assert greedy[1::2].tolist() == [2] * 200
    warm = draw(ops, logits, Settings(temperature=3.0), torch.arange(400), banned=banned)
    assert set(warm[::2].tolist()) == {0, 1, 3}
    assert 2 in warm[1::2].tolist()
    assert logits[0, 2] == 5.0, "the caller's logits were changed"


@pytest.mark.parametrize(
    "how", [Settings(temperature=0.0), Settings(), Settings(top_k=3, top_p=0.9, min_p=0.1)], ids=str
)
def test_a_row_without_a_finite_logit_gives_some_id_and_harms_no_other(ops_of: OpsFor, how: Settings):
    """All NaN, or all -inf: an id of the vocabulary, and the neighbours' as without it."""
    logits, ops = random_logits(4, 30), ops_of(torch.float32)
    right = draw(ops, logits, how, torch.arange(4))
    logits[1], logits[2] = float("nan"), NONE
    ids = draw(ops, logits, how, torch.arange(4))
    assert ids[[0, 3]].tolist() == right[[0, 3]].tolist()
    assert all(0 <= id_ < 30 for id_ in ids.tolist())
