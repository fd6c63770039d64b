"""9. When to stop, and how to choose.

A job ends where the model ends it, at a stop string or stop id, or at `max_tokens`. Greedy unless one asks for chance;
and chance is drawn from the job's seed, so it can be had again.
"""

COUNT = {"prompt": "Count from 1 to 30\n", "max_tokens": 100}


def test_a_stop_string_ends_the_answer_before_itself(queue):
    """The text stops short of the stop string, wherever tokens begin and end."""
    result = queue.result(queue.submit(**COUNT, stop=[" 12 13"]), timeout=60)
    assert result.text == "1 2 3 4 5 6 7 8 9 10 11"
    assert result.finish_reason == "stop"


def test_a_reader_never_sees_what_turns_out_to_be_a_stop_string(queue):
    """While text could still become a stop string it is held back, so nothing is ever taken back."""
    job = queue.submit(**COUNT, stop=["7 8 9 1X", "15 16"])
    streamed = "".join(event.text for event in queue.stream(job) if event.kind == "tokens")
    assert streamed == "1 2 3 4 5 6 7 8 9 10 11 12 13 14 "


def test_max_tokens_ends_a_job_in_mid_sentence(queue):
    """`length` says that there would have been more."""
    result = queue.result(queue.submit(prompt="Count from 1 to 30\n", max_tokens=5), timeout=60)
    assert result.finish_reason == "length"
    assert len(result.token_ids) == 5


def test_min_tokens_keeps_a_job_from_ending_early(queue):
    """Until then neither the model's own end nor a stop string counts."""
    result = queue.result(queue.submit(**COUNT, stop=[" 2"], min_tokens=30), timeout=60)
    assert len(result.token_ids) >= 30
    assert result.text.startswith("1 2 3")


def test_chance_can_be_had_again(queue):
    """The same seed draws the same tokens, another seed others; a job without one gets its own."""

    def answer(**sampling):
        job = queue.submit(prompt="Tell me a story", temperature=2.0, max_tokens=60, ignore_eos=True, **sampling)
        return queue.result(job, timeout=60).token_ids

    assert answer(seed=7) == answer(seed=7)
    assert answer(seed=7) != answer(seed=8)
    assert answer() != answer()
