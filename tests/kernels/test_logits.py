"""What is done to logits, and what is read from them: bias, allowed tokens, penalties, log-probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.adjust_logits import Penalties
from kernels.likeliest import likeliest
from tests.kernels.conftest import OpsFor, examples

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
vocabularies = st.sampled_from([1, 31, 32, 33, 100, 1500])
# A few roundings of values up to 10, each by half of bf16's unit in the last place there.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def random_bits(rows: int, vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Packed [rows, words] int32, all 32 bits of a word in use, and the same as bools [rows, vocab]."""
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), generator=torch.Generator().manual_seed(seed))
    bits = [[word >> place & 1 for word in row for place in range(32)] for row in words.tolist()]
    return words.int(), torch.tensor(bits).bool()[:, :vocab]


def test_bias_then_allowed_tokens_then_penalties(ops_of: OpsFor):
    """Against loops over tokens in fp64; each alone and together."""

    @examples(ops_of, 20)
    @given(dtypes, st.integers(1, 4), vocabularies, st.booleans(), st.booleans(), st.booleans())
    def check(dtype: torch.dtype, rows: int, vocab: int, biased: bool, masked: bool, penalised: bool) -> None:
        logits = normal(rows, vocab).to(dtype)
        expected = logits.double()
        bias = allowed = penalties = None
        if biased:
            bias = (torch.arange(rows), torch.arange(rows) * 7 % vocab, torch.linspace(-2, 5, rows))
            for row, token, value in zip(*bias, strict=True):
                expected[row, token] += float(value)
            expected = expected.to(dtype).double()
        if masked:
            allowed, bits = random_bits(rows, vocab, 1)
            expected[~bits] = float("-inf")
        if penalised:
            in_prompt, prompt = random_bits(rows + 2, vocab, 2)
            counts = torch.randint(0, 3, (rows + 2, vocab), generator=torch.Generator().manual_seed(3)).int()
            seats = torch.arange(rows).flip(0) + 2
            values = [torch.linspace(*ends, rows) for ends in ((0.8, 1.5), (0.0, 1.0), (-0.5, 0.7))]
            penalties = Penalties(seats, in_prompt, counts, *values)
            for row, seat in enumerate(seats.tolist()):
                repetition, presence, frequency = (float(value[row]) for value in values)
                past = zip(expected[row].tolist(), prompt[seat].tolist(), counts[seat].tolist(), strict=True)
                expected[row] = torch.tensor(
                    [
                        (x if not (said or count) else x / repetition if x > 0 else x * repetition)
                        - frequency * count
                        - presence * (count > 0)
                        for x, said, count in past
                    ],
                    dtype=torch.float64,
                )
        ops = ops_of(dtype)
        got = ops.adjust_logits(logits, bias=bias, allowed=allowed, penalties=penalties)
        assert got is logits
        torch.testing.assert_close(got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    check()


def test_log_probabilities_are_those_of_a_softmax(ops_of: OpsFor):
    """In fp64; of several tokens a row, equal ones among them, with tokens that are ruled out."""

    @examples(ops_of, 20)
    @given(dtypes, st.integers(1, 3), vocabularies, st.integers(1, 5))
    def check(dtype: torch.dtype, rows: int, vocab: int, wanted: int) -> None:
        logits = (normal(rows, vocab) * 4).to(dtype)
        logits[:, 1::3] = float("-inf")
        ids = torch.randint(0, vocab, (rows, wanted), generator=torch.Generator().manual_seed(4))
        logprobs = ops_of(dtype).token_logprobs(logits, ids)
        wide = logits.double()
        torch.testing.assert_close(logprobs.double(), wide.log_softmax(-1).gather(1, ids), atol=1e-5, rtol=1e-5)

    check()


def test_a_row_has_the_same_log_probabilities_to_the_bit_beside_any_others(cpu_ops_of: OpsFor):
    """Alone, and as one of many, whose sums torch cuts up otherwise; with one thread and with two."""
    logits = normal(40, 40_000).bfloat16()
    ids = torch.arange(40 * 3).view(40, 3) * 300
    ops = cpu_ops_of(torch.bfloat16)
    together = ops.token_logprobs(logits, ids)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for row in (0, 17, 39):
            assert torch.equal(ops.token_logprobs(logits[row : row + 1], ids[row : row + 1])[0], together[row])


def test_the_likeliest_tokens_come_in_order_ties_by_lower_id():
    """Of bf16 values, which are often equal, beside 0, -0 and -inf; as a stable sort has them."""
    logits = normal(5, 700, seed=5).bfloat16()
    logits[1] = (logits[1] * 0.3).round()  # ties everywhere, 0 and -0 among them
    logits[2, 30:] = float("-inf")
    expected = logits.sort(dim=-1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(likeliest(logits, 20), expected)
    assert torch.equal(likeliest(logits[:, :1], 1), torch.zeros(5, 1, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("V", [1, 7, 500, 3001, 9000])
def test_the_likeliest_come_in_order_and_of_equal_ones_those_of_lower_ids(V: int, dtype: torch.dtype):
    """As a stable sort has them, whether they are looked for among all tokens or in blocks; many equal, many ruled out,
    zeros of either sign."""
    generator = torch.Generator().manual_seed(V)
    plain = torch.randn(5, V, generator=generator)
    ruled_out = plain.masked_fill(torch.rand(5, V, generator=generator) < 0.9, float("-inf"))
    for logits in (plain, plain.round(), ruled_out, 0.0 * plain):
        rounded = logits.to(dtype)
        expected = rounded.float().sort(dim=-1, descending=True, stable=True).indices
        for count in (1, 5, 20):
            if count <= V:
                assert torch.equal(likeliest(rounded, count), expected[:, :count])
