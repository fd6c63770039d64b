"""14. Shaping what is said.

Before a token is drawn its logit may be changed: by a bias of your own, by what has been said already (penalties), or
so that it can't come at all (allowed tokens, bad words). And one may ask how likely each token was, and what else was.
Tokens are named by ids, as results have them.
"""

import math
from collections import Counter

COUNT = {"prompt": "Count from 3 to 9\n", "max_tokens": 40}


def test_how_likely_each_token_was_comes_with_it(queue):
    """`logprobs=2`: the logarithm of each token's probability, and the two likeliest in its place, likeliest first."""
    result = queue.result(queue.submit(**COUNT, logprobs=2), timeout=60)
    assert result.text == "3 4 5 6 7 8 9"
    assert len(result.logprobs) == len(result.token_ids)
    for token, told in zip(result.token_ids, result.logprobs, strict=True):
        (likeliest, first), (_, second) = told.top
        assert (likeliest, first) == (token, told.logprob)  # greedy: the likeliest is what was drawn
        assert second <= first <= 0
        assert math.exp(first) + math.exp(second) <= 1.0001


def test_a_stream_tells_it_event_by_event(queue):
    """From wherever one reads; `logprobs=0` is of the tokens alone. Who doesn't ask gets None."""
    job = queue.submit(**COUNT, logprobs=0)
    whole = queue.result(job, timeout=60).logprobs
    streamed = [event for event in queue.stream(job, from_offset=4) if event.kind == "tokens"]
    assert [told for event in streamed for told in event.logprobs] == list(whole[4:])
    assert all(told.top == () for told in whole)
    assert queue.result(queue.submit(**COUNT), timeout=60).logprobs is None


def test_a_bias_makes_a_token_likely_or_impossible(queue):
    """`logit_bias` is added to the logits of these ids: -100 rules one out, 100 lets nothing else come."""
    plain = queue.result(queue.submit(**COUNT), timeout=60).token_ids
    without = queue.result(queue.submit(**COUNT, logit_bias={plain[4]: -100}), timeout=60)
    assert plain[4] not in without.token_ids
    assert without.token_ids[:4] == plain[:4]
    only = queue.result(queue.submit(prompt="Hello", max_tokens=5, logit_bias={plain[4]: 100}), timeout=60)
    assert only.token_ids == (plain[4],) * 5


def test_only_allowed_tokens_come(queue):
    """`allowed_token_ids`: a choice among these, whatever the model would say. End it by `max_tokens`."""
    yes, no = (queue.result(queue.submit(prompt=text, max_tokens=1), timeout=60).token_ids[0] for text in ("a", "b"))
    job = queue.submit(prompt="Is the sky blue?", allowed_token_ids=[yes, no], max_tokens=6, temperature=1.5, seed=3)
    assert set(queue.result(job, timeout=60).token_ids) <= {yes, no}


def test_bad_words_are_not_written(queue):
    """The tokens that make a text are not drawn one after the other, be it one token or several."""
    assert "6 7" not in queue.result(queue.submit(**COUNT, bad_words=["6 7"]), timeout=60).text
    said = queue.result(queue.submit(**COUNT, bad_words=["7"]), timeout=60).text
    assert said.startswith("3 4 5 6")
    assert "7" not in said.split()


def test_penalties_keep_it_from_repeating_itself(queue):
    """`frequency_penalty` for each time, `presence_penalty` once, `repetition_penalty` for the prompt's tokens too."""

    def most_repeated(**penalties):
        job = queue.submit(prompt="Tell me a story", max_tokens=120, ignore_eos=True, **penalties)
        return max(Counter(queue.result(job, timeout=60).token_ids).values())

    plain = most_repeated()
    assert most_repeated(frequency_penalty=2.0) < plain
    assert most_repeated(repetition_penalty=1.8, presence_penalty=2.0) < plain


def test_log_probabilities_are_the_models_own(queue):
    """They are of the logits before bias, penalties, temperature and bans: a token that was forced may be unlikely."""
    plain = queue.result(queue.submit(**COUNT, logprobs=20), timeout=60)
    third = plain.token_ids[4]
    forced = queue.result(queue.submit(**COUNT, logprobs=20, logit_bias={third: 100}, temperature=2.0), timeout=60)
    assert forced.token_ids[0] == third
    assert forced.logprobs[0].top == plain.logprobs[0].top
    assert forced.logprobs[0].logprob < plain.logprobs[0].logprob
