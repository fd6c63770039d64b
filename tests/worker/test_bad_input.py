"""What only the worker can see to be wrong ends that job as `failed`, names the field and says what to do.

After each of them the worker answers a good job: nothing that a producer can send stops it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import redis

from producer import Producer, calls, wire
from producer.keys import Keys
from producer.protocol import Job, Result

KEYS = Keys("default")
ANSWER_WITHIN_S = 60


@pytest.fixture
def lane(served_url: str) -> Iterator[redis.Redis]:
    """The worker's Redis, for what is put there by hand."""
    with redis.Redis.from_url(served_url) as connection:
        yield connection


@pytest.fixture
def enqueue(lane: redis.Redis) -> Callable[[bytes], str]:
    """Enqueue any bytes as a job's payload, as a client in another language might; the job's id."""

    def by_hand(payload: bytes) -> str:
        job = Job(prompt="replaced")
        call = calls.enqueue(KEYS, job)
        encoded = wire.encode_job(job)
        assert encoded in call.args
        calls.run(lane, dataclasses.replace(call, args=tuple(payload if arg == encoded else arg for arg in call.args)))
        return job.id

    return by_hand


@pytest.fixture(autouse=True)
def the_worker_goes_on(queue: Producer) -> Iterator[None]:
    """After whatever a test has done to it, the worker answers a good job."""
    yield
    assert queue.result(queue.submit(prompt="Count from 3 to 5\n"), ANSWER_WITHIN_S).text == "3 4 5"


def failure(queue: Producer, job: str) -> tuple[str, str]:
    """Code and message of a job that has to fail; its last event says the same as its result."""
    result = queue.result(job, ANSWER_WITHIN_S)
    assert result.finish_reason == "failed"
    assert result.error is not None
    *_, last = queue.stream(job)
    assert (last.kind, last.reason, last.error) == ("ended", "failed", result.error)
    return result.error.code, result.error.message


TOO_MUCH_FOR_SUBMIT: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "a prompt longer than the model": (
        {"prompt": "one " * 1500},
        "prompt_too_long",
        ("prompt: ", "tokens leave no room to answer", "takes 1024"),
    ),
    "prompt and max_tokens longer than the model": (
        {"prompt": "Hello", "max_tokens": 1024},
        "too_long",
        ("max_tokens: ", "max_tokens (1024)", "takes 1024"),
    ),
    "a token id outside the vocabulary": (
        {"prompt_token_ids": [1, 999_999]},
        "token_outside_vocabulary",
        ("prompt_token_ids: id 999999 at position 1", "expected 0 to "),
    ),
    "a stop id outside the vocabulary": (
        {"prompt": "Hello", "stop_token_ids": [999_999]},
        "token_outside_vocabulary",
        ("stop_token_ids: 999999", "(0 to "),
    ),
    "a bias of an id outside the vocabulary": (
        {"prompt": "Hello", "logit_bias": {5: 1.0, 999_999: -1.0}},
        "token_outside_vocabulary",
        ("logit_bias: 999999", "(0 to "),
    ),
    "an allowed id outside the vocabulary": (
        {"prompt": "Hello", "allowed_token_ids": [5, 999_999]},
        "token_outside_vocabulary",
        ("allowed_token_ids: 999999", "(0 to "),
    ),
    "nothing allowed that is not bad": (
        {"prompt": "Hello", "allowed_token_ids": [2], "stop_token_ids": [2], "min_tokens": 1, "max_tokens": 9},
        "unservable",
        ("allowed_token_ids: ", "ruled out by bad_words, or by stop ids before min_tokens"),
    ),
    "a role that the template does not have": (
        {"messages": [{"role": "narrator", "content": "It was night."}]},
        "template_refused",
        ("narrator", "expected system, user or assistant"),
    ),
    "another model's name": (
        {"prompt": "Hello", "model": "a-larger-one"},
        "model_not_served",
        ("model: this queue serves 'model', the job asks for 'a-larger-one'",),
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH_FOR_SUBMIT)
def test_a_job_that_this_model_can_not_answer_fails(queue, case):
    """The producer could not know; the worker names the field, what it was and what there is."""
    fields, code, words = TOO_MUCH_FOR_SUBMIT[case]
    found, message = failure(queue, queue.submit(**fields))
    assert found == code
    for said in words:
        assert said in message


def as_json(**fields: Any) -> bytes:
    return json.dumps({"v": 1, **fields}).encode()


NOT_A_JOB: dict[str, tuple[bytes, str]] = {
    "bytes that are neither msgpack nor JSON": (b"\xc1\x00\xff garbage", "not one whole msgpack map"),
    "nothing at all": (b"", "not one whole msgpack map"),
    "msgpack that breaks off": (msgpack.packb({"v": 1, "prompt": "Hello"})[:-2], "not one whole msgpack map"),
    "JSON that breaks off": (b'{"v": 1, "prompt": "Hel', "not one whole JSON map"),
    "no map": (msgpack.packb([1, 2, 3]), "not a map of named fields"),
    "no version": (b'{"prompt": "Hello"}', "expected a protocol version"),
    "an unknown field": (as_json(prompt="Hello", temprature=1), "temprature: expected one of id, prompt, "),
    "an unknown field of sampling": (as_json(prompt="Hello", sampling={"beams": 4}), "beams: expected one of "),
    "prompt and messages": (
        as_json(prompt="Hello", messages=[{"role": "user", "content": "Hello"}]),
        "exactly one of prompt, messages and prompt_token_ids",
    ),
    "neither": (as_json(max_tokens=4), "max_tokens: expected one of "),
    "an empty prompt": (as_json(prompt=""), "prompt: expected "),
    "a number as text": (as_json(prompt="Hello", sampling={"max_tokens": "4"}), "max_tokens: expected "),
    "a temperature below zero": (as_json(prompt="Hello", sampling={"temperature": -1}), "temperature: expected "),
    "a temperature that is no number": (b'{"v": 1, "prompt": "Hi", "sampling": {"temperature": NaN}}', "NaN"),
    "half a surrogate pair": (b'{"v": 1, "prompt": "\\ud800"}', "prompt: expected "),
    "a number over its bound": (as_json(prompt="Hello", sampling={"top_k": 2**64 - 1}), "top_k: expected less than"),
    "another job's id": (as_json(prompt="Hello", id="0.default.0123456789abcdef"), "its key says"),
    "nested without end": (b'{"v": 1, "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested deeper than"),
    "more than the limit": (as_json(prompt="x" * (5 << 20)), "bytes, limit "),
}


@pytest.mark.parametrize("case", NOT_A_JOB)
def test_a_payload_that_is_no_job_fails_with_the_reason(queue, enqueue, case):
    """Whoever wrote it is told what is wrong with it, by field where there is one."""
    payload, words = NOT_A_JOB[case]
    code, message = failure(queue, enqueue(payload))
    assert code == "undecodable"
    assert words in message


EXTREME: dict[str, dict[str, Any]] = {
    "the largest top_k": {"top_k": 2**31 - 1, "temperature": 1.0},
    "top_k of thirty digits": {"top_k": 10**30, "temperature": 1.0},
    "top_p next to nothing": {"top_p": 1e-300, "temperature": 1.0},
    "min_p of one": {"min_p": 1.0, "temperature": 1.0},
    "temperature next to zero": {"temperature": 1e-300},
    "temperature as small as fp32 goes": {"temperature": 1e-45},
    "temperature without end": {"temperature": 1e300},
    "the largest min_tokens": {"min_tokens": 2**31 - 1, "max_tokens": None},
    "the least repetition_penalty": {"repetition_penalty": 0.01},
    "the greatest of penalties": {"repetition_penalty": 2.0, "frequency_penalty": 2.0, "presence_penalty": 2.0},
    "a bias of every size": {"logit_bias": {str(token): (token % 201) - 100.0 for token in range(300)}},
    "the largest seed": {"seed": 2**63 - 1, "temperature": 1.0},
}


@pytest.mark.parametrize("case", EXTREME)
def test_extreme_sampling_is_answered_or_refused_by_name(queue, enqueue, case):
    """Whatever numbers the protocol lets through, the job alone bears the consequences, not its neighbour's batch."""
    neighbour = queue.submit(prompt="Count from 1 to 30\n")
    job = enqueue(as_json(prompt="Count from 3 to 5\n", sampling={"max_tokens": 8, **EXTREME[case]}))
    result = queue.result(job, ANSWER_WITHIN_S)
    if not result.ok:
        field = next(iter(EXTREME[case]))
        assert f"{field}: " in result.error.message
    assert queue.result(neighbour, ANSWER_WITHIN_S).ok


@pytest.mark.parametrize(
    "sampling", [{"top_p": 1e-300}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-300}, {"temperature": 1e-45}]
)
def test_at_their_limits_all_ways_to_choose_are_greedy(queue, enqueue, sampling):
    """Whatever leaves only the likeliest token gives the greedy answer."""
    job = enqueue(as_json(prompt="Count from 3 to 9\n", sampling={"temperature": 1.0, **sampling}))
    assert queue.result(job, ANSWER_WITHIN_S).text == "3 4 5 6 7 8 9"


def test_json_is_a_job_too(queue, enqueue):
    """What is refused above is refused for its content: the same by hand, without a mistake, is answered."""
    job = enqueue(as_json(prompt="Count from 3 to 5\n", sampling={"max_tokens": 20}))
    assert queue.result(job, ANSWER_WITHIN_S).text == "3 4 5"


def test_entries_of_a_lane_that_are_no_jobs_are_removed(queue, lane, wait_until):
    """XADD by hand: no job's id, an id without a job, an id that is no text. None stays, none is worked on."""
    name = KEYS.lane("high")
    for fields in ({"job": "mine"}, {"j": "0.default.0123456789abcdef"}, {"j": b"\xff\xfe"}, {"j": ""}):
        lane.xadd(name, fields)
    wait_until(lambda: lane.xlen(name) == 0, 30, "all foreign entries are gone")
    assert lane.xpending(name, "workers")["pending"] == 0


def test_a_job_of_a_newer_protocol_waits_for_a_newer_worker(queue, enqueue, wait_until, worker):
    """During a rolling upgrade it is handed back, uncounted, and not failed."""
    before = len(worker.said("handed_back"))
    job = enqueue(json.dumps({"v": 2, "prompt": "Hello", "novelty": True}).encode())
    wait_until(lambda: len(worker.said("handed_back")) > before, 30, "the worker hands it back")
    wait_until(lambda: queue.status(job).state == "queued", 30, "it is queued again")
    assert queue.status(job).deliveries == 0
    queue.cancel(job)


def test_more_than_the_page_pool_fails_though_the_model_could(small_pool):
    """A worker with ten pages of 32 takes jobs of 320 tokens; a longer one is told so, a shorter one answered."""
    code, message = failure(small_pool, small_pool.submit(prompt="Count from 3 to 5\n", max_tokens=400))
    assert code == "too_long"
    assert "this worker takes 320 (the model's length or its page pool, whichever is less)" in message
    answer: Result = small_pool.result(small_pool.submit(prompt="Count from 3 to 5\n", max_tokens=20), ANSWER_WITHIN_S)
    assert answer.text == "3 4 5"
