"""3. Come and go.

A job's events lie in Redis until `result_ttl` after its end. Readers may leave in mid-sentence, come back to the very
token where they were, and be as many as they like; the job notices nothing.
"""

import pytest

from producer import Producer
from producer.protocol import Tokens

LONG = {"prompt": "Count from 1 to 100", "max_tokens": 800, "ignore_eos": True}


def tokens_of(events):
    """The ids of all tokens in `events`."""
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


def read_at_least(stream, count):
    """Read a stream until it has given `count` tokens, and leave it."""
    read = []
    for event in stream:
        read += tokens_of([event])
        if len(read) >= count:
            return read
    pytest.fail(f"the stream ended after {len(read)} tokens, {count} were wanted")


def test_a_reader_leaves_and_comes_back_to_the_token_where_it_was(queue, worker, url):
    """`from_offset` is the number of tokens one has: the rest follows, without a gap and without a repeated token."""
    with worker.slow():
        job = queue.submit(**LONG)
        seen = read_at_least(queue.stream(job), 20)
        assert queue.status(job).state == "running"

    with Producer(url) as later:  # another process, as far as anyone can tell
        seen += tokens_of(later.stream(job, from_offset=len(seen)))

    assert tuple(seen) == queue.result(job).token_ids
    assert len(seen) == 800


def test_a_reader_may_come_back_many_times(queue):
    """However often a reader leaves, the pieces add up."""
    job = queue.submit(**LONG)
    seen = []
    while len(seen) < 600:
        seen += read_at_least(queue.stream(job, from_offset=len(seen)), 100)
    seen += tokens_of(queue.stream(job, from_offset=len(seen)))
    assert tuple(seen) == queue.result(job).token_ids


def test_an_offset_may_lie_inside_an_event(queue):
    """A worker sends several tokens at a time; where one event ends and the next begins is nobody's business."""
    job = queue.submit(prompt="Count from 1 to 60", max_tokens=200)
    whole = tokens_of(queue.stream(job))
    for offset in (0, 1, 7, len(whole) - 1, len(whole)):
        assert tokens_of(queue.stream(job, from_offset=offset)) == whole[offset:]


def test_several_readers_follow_one_job(queue, url):
    """Each reader has a place of its own: one at the end already, one from the start, one from the middle."""
    job = queue.submit(prompt="Count from 1 to 60", max_tokens=200)
    first = tokens_of(queue.stream(job))
    with Producer(url) as second, Producer(url) as third:
        assert tokens_of(second.stream(job)) == first
        assert tokens_of(third.stream(job, from_offset=20)) == first[20:]


def test_the_end_is_told_to_those_who_come_late(queue):
    """A reader that has every token already is told that the job is over, and why."""
    job = queue.submit(prompt="Count from 1 to 5", max_tokens=60)
    tokens = queue.result(job, timeout=60).token_ids
    (ended,) = queue.stream(job, from_offset=len(tokens))
    assert (ended.kind, ended.reason) == ("ended", "stop")
