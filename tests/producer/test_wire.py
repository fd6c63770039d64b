"""Bytes in, a validated model or one exception with the reason out."""

import contextlib
import json
import math
import time

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer import InvalidJob, Job, Result, wire
from producer.errors import NewerProtocol, Undecodable
from producer.protocol import Failure, Timings, Usage

ID = "0.default.0123456789ab"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


UNDECODABLE = {
    "nothing": b"",
    "a byte that begins nothing": b"\xc1",
    "a map that breaks off": msgpack.packb({"v": 1, "prompt": "hello"})[:-2],
    "bytes after the map": msgpack.packb({"v": 1, "prompt": "a"}) + b"\x00",
    "a list": msgpack.packb([1, 2]),
    "a number": b"\x07",
    "numbers for names": msgpack.packb({1: 2}),
    "bytes for names": msgpack.packb({b"v": 1}),
    "text that is no UTF-8": b"\x82\xa1v\x01\xa6prompt\xa2\xff\xfe",
    "an extension": msgpack.packb({"v": 1, "prompt": msgpack.ExtType(5, b"abc")}),
    "no version": msgpack.packb({"prompt": "a"}),
    "version 0": msgpack.packb({"v": 0, "prompt": "a"}),
    "a version that is a truth": msgpack.packb({"v": True, "prompt": "a"}),
    "a version that is text": msgpack.packb({"v": "1", "prompt": "a"}),
    "deep msgpack": msgpack.packb({"v": 1, "prompt": nested(500)}),
    "deep JSON": json.dumps({"v": 1, "prompt": nested(100)}).encode(),
    "deeper JSON than Python can read": b'{"v":1,"prompt":' + b"[" * 100_000,
    "a count of four billion": b"\x82\xa1v\x01\xa6prompt\xdd\xff\xff\xff\xff",
    "too many values": msgpack.packb({"v": 1, "prompt_token_ids": [1] * (1 << 20)}),
    "too many JSON values": b'{"v":1,"prompt_token_ids":[' + b"1," * (1 << 20) + b"1]}",
    "too many bytes": msgpack.packb({"v": 1, "prompt": "x" * wire.MAX_JOB_BYTES}),
    "broken JSON": b'{"v": 1, "prompt": "a"',
    "JSON with NaN": b'{"v": 1, "prompt": "a", "result_ttl": NaN}',
    "JSON in UTF-16": json.dumps({"v": 1, "prompt": "a"}).encode("utf-16-le"),
    "an unknown field": msgpack.packb({"v": 1, "prompt": "a", "colour": "red"}),
    "a field of a wrong type": msgpack.packb({"v": 1, "prompt": 7}),
    "another job's id": msgpack.packb({"v": 1, "id": "0.default.other-job", "prompt": "a"}),
    "a bad sampling value": msgpack.packb({"v": 1, "prompt": "a", "sampling": {"top_p": 2}}),
}


@pytest.mark.parametrize("case", UNDECODABLE)
def test_what_is_no_job_is_refused_with_the_reason(case):
    """Every kind of wrong bytes is the same exception, whose message is one line."""
    with pytest.raises(Undecodable) as caught:
        wire.decode_job(UNDECODABLE[case], ID)
    assert str(caught.value).startswith("this is no job: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (msgpack.packb({"v": 1, "prompt": "a", "colour": "red"}), "colour"),
        (msgpack.packb({"v": 1, "prompt": ""}), "prompt"),
        (b'{"v": 1, "prompt": "a", "sampling": {"top_p": 2}}', "top_p"),
    ],
)
def test_a_wrong_field_is_named_also_from_bytes(payload, field):
    """What the producer would have refused, the worker refuses in the same words."""
    with pytest.raises(Undecodable) as caught:
        wire.decode_job(payload, ID)
    assert caught.value.field == field


def test_a_newer_protocol_is_told_from_nonsense():
    """A worker can hand such a job to a newer one instead of failing it."""
    with pytest.raises(NewerProtocol, match="version is 2"):
        wire.decode_job(msgpack.packb({"v": 2, "prompt": "a", "new_field": 1}), ID)


def test_refusing_takes_no_time_and_little_memory():
    """The largest payload of the most values is refused before it is built."""
    hostile = msgpack.packb({"v": 1, "prompt": [[]] * 4_000_000})[: wire.MAX_JOB_BYTES]
    began = time.process_time()
    with pytest.raises(Undecodable, match="values"):
        wire.decode_job(hostile, ID)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("fields", [
    {"prompt": "héllo ∀ 🙂"},
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]},
    {"prompt_token_ids": list(range(70_000))},
    {"prompt": "a", "sampling": {"temperature": 1, "stop": ["\n", "x"], "stop_token_ids": [2], "seed": 5}},
    {"prompt": "a", "sampling": {"logit_bias": {5: -100, 70_000: 2.5}, "allowed_token_ids": [5], "bad_words": ["no"],
        "repetition_penalty": 1.1, "frequency_penalty": -1, "presence_penalty": 0.5, "logprobs": 0}},
    {"prompt": "a", "model": "llama", "lane": "high", "tenant": "me", "result_ttl": 12.5},
])  # fmt: skip
def test_a_job_comes_through_unchanged(fields):
    """Encoding and decoding give the same job."""
    job = Job(**fields)
    assert wire.decode_job(wire.encode_job(job), job.id) == job


def test_a_job_may_be_json():
    """Any language can enqueue: the same map as JSON is the same job."""
    payload = b' {"v": 1, "prompt": "count [to] {3} \\"quoted\\"", "sampling": {"temperature": 0, "stop": ["\\\\"]}}'
    job = wire.decode_job(payload, ID)
    assert (job.id, job.prompt, job.sampling.stop) == (ID, 'count [to] {3} "quoted"', ("\\",))


def test_a_job_over_the_limit_is_refused_before_it_is_sent():
    """The producer knows the worker's limit."""
    with pytest.raises(InvalidJob, match="bytes"):
        wire.encode_job(Job(prompt="x" * (wire.MAX_JOB_BYTES + 1)))


def test_a_result_comes_through_unchanged():
    """With everything a result can hold."""
    result = Result(
        job_id=ID,
        finish_reason="failed",
        text="a",
        token_ids=(1, 2),
        error=Failure(code="c", message="m"),
        usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
        timings=Timings(queued_s=0.5, first_token_s=1.0, total_s=2.0),
    )
    assert wire.decode_result(wire.encode_result(result), ID) == result


def test_events_come_through_unchanged():
    """Offset and delivery come from the entry, the rest from its blob."""
    started = wire.decode_event(b"17-4", {b"s": wire.encode_started("w", "llama"), b"n": b"2"})
    assert (started.offset, started.delivery, started.worker, started.model) == (4, 2, "w", "llama")
    tokens = wire.decode_event(b"17-6", {b"t": wire.encode_tokens([8, 9], ["a", "b"], 77)})
    assert (tokens.start, tokens.offset, tokens.token_ids, tokens.text, tokens.hash) == (4, 6, (8, 9), "ab", 77)
    blob = wire.encode_ended("stop", Failure(code="c", message="m"), Usage(prompt_tokens=1, completion_tokens=6))
    ended = wire.decode_event(b"18-6", {b"e": blob})
    assert (ended.reason, ended.offset, ended.error.code, ended.usage.completion_tokens) == ("stop", 6, "c", 6)


@pytest.mark.parametrize("fields", [
    {},
    {b"x": b""},
    {b"t": b"\xc1"},
    {b"t": msgpack.packb({"v": 1, "ids": [1], "text": [], "hash": 0})},
    {b"t": msgpack.packb({"v": 1, "ids": [1, 2, 3, 4, 5, 6, 7], "text": [""] * 7, "hash": 0})},
    {b"e": msgpack.packb({"v": 1, "reason": "bored"})},
    {b"s": msgpack.packb({"v": 1})},
])  # fmt: skip
def test_an_entry_that_is_no_event_is_refused(fields):
    """A reader is told, instead of being given something half understood."""
    with pytest.raises(Undecodable):
        wire.decode_event(b"17-6", fields)


@given(st.binary(max_size=64))
def test_no_bytes_crash_the_decoder(payload):
    """Whatever the bytes are, the answer is a job or Undecodable."""
    with contextlib.suppress(Undecodable):
        wire.decode_job(payload, ID)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20),
    max_leaves=25,
)


def depth(value):
    """Containers around the innermost value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((1 + depth(item) for item in inside), default=0)


@settings(max_examples=60, deadline=None)
@given(plain)
def test_the_shape_check_agrees_with_msgpack(value):
    """Whatever msgpack can write, the check walks through from the first byte to the last, or finds it too deep."""
    payload = msgpack.packb({"v": 1, "x": value})
    with pytest.raises(Undecodable) as caught:
        wire.decode_job(payload, ID)
    assert ("nested deeper" in caught.value.reason) == (depth(value) + 1 > wire.MAX_DEPTH)
    assert caught.value.field == "x" or "nested deeper" in caught.value.reason


singles = st.floats(max_value=0.0, width=32, allow_nan=False, allow_infinity=False)
tops = st.lists(st.tuples(st.integers(0, 2**31 - 1), singles), max_size=20)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(singles, tops), min_size=1, max_size=8))
def test_log_probabilities_come_through_to_the_bit(told):
    """In events and in results, whatever their numbers of alternatives."""
    plain = [(own, [id_ for id_, _ in top], [value for _, value in top]) for own, top in told]
    ids = list(range(len(told)))
    event = wire.decode_tokens(wire.encode_tokens(ids, [""] * len(ids), 7, plain), len(ids))
    assert [(one.logprob, list(one.top)) for one in event.logprobs] == told
    result = Result(job_id=ID, finish_reason="stop", text="", token_ids=tuple(ids), logprobs=event.logprobs)
    assert wire.decode_result(wire.encode_result(result), ID) == result
    assert wire.decode_result(wire.encode_result(result, plain), ID) == result


def test_what_is_impossible_is_no_alternative():
    """-inf only fills up the bytes."""
    blob = wire.encode_tokens([1, 2], ["", ""], 7, [(-0.5, [1, 2], [-0.5, -math.inf]), (-2.0, [], [])])
    assert [one.top for one in wire.decode_tokens(blob, 2).logprobs] == [((1, -0.5),), ()]


def test_without_log_probabilities_an_event_has_no_bytes_for_them():
    """Nor has a result."""
    assert b"logprobs" not in wire.encode_tokens([1], ["a"], 7)
    assert wire.decode_tokens(wire.encode_tokens([1], ["a"], 7), 1).logprobs is None
    assert b"logprobs" not in wire.encode_result(Result(job_id=ID, finish_reason="stop", text="", token_ids=(1,)))


def test_the_longest_result_with_all_alternatives_can_be_read():
    """131,072 tokens with twenty alternatives each: within the bounds of bytes and values."""
    count = 131_072
    told = [(-1.0, list(range(20)), [-1.5] * 20)] * count
    result = Result(job_id=ID, finish_reason="length", text="", token_ids=tuple(range(count)))
    blob = wire.encode_result(result, told)
    assert len(blob) < 25 << 20
    fields = wire._unpack("result", blob, wire.MAX_RESULT_BYTES)  # as far as the bounds go: the rest takes seconds
    assert len(fields["logprobs"]["top"]) == 4 * 20 * count


WRONG_LOGPROBS = {
    "no map": [1.0],
    "a run that is missing": {"of": b"", "ids": b""},
    "text for bytes": {"of": "abcd", "ids": b"", "top": b""},
    "half a value": {"of": b"abc", "ids": b"", "top": b""},
    "of another number of tokens": {"of": b"\0" * 8, "ids": b"", "top": b""},
    "alternatives that can't be shared out": {"of": b"\0" * 4, "ids": b"\0" * 8, "top": b"\0" * 4},
    "not a number": {"of": b"\0\0\xc0\x7f", "ids": b"", "top": b""},
    "a token that was impossible": {"of": b"\0\0\x80\xff", "ids": b"", "top": b""},
}


@pytest.mark.parametrize("case", WRONG_LOGPROBS)
def test_wrong_log_probabilities_are_refused_with_the_reason(case):
    """In an event of one token and in a result of one, in one sentence."""
    event = {"v": 1, "ids": [1], "text": ["a"], "hash": 7, "logprobs": WRONG_LOGPROBS[case]}
    with pytest.raises(Undecodable, match="this is no tokens event"):
        wire.decode_tokens(msgpack.packb(event), 1)
    result = {"v": 1, "finish_reason": "stop", "text": "a", "token_ids": [1], "logprobs": WRONG_LOGPROBS[case]}
    with pytest.raises(Undecodable, match="this is no result"):
        wire.decode_result(msgpack.packb(result), ID)
