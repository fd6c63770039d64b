"""What a job may say, and that whatever it may not is refused by the name of its field."""

import math
import subprocess
import sys

import pytest

from producer import InvalidJob, Job, JobCancelled, JobDead, JobExpired, JobFailed, Result, SamplingParams
from producer.keys import Keys, new_job_id
from producer.protocol import Failure, TokenLogprob, Tokens, running_hash

REFUSED = {
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "neither prompt nor messages nor ids": ({}, "prompt"),
    "prompt and messages": ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "messages"),
    "prompt and ids": ({"prompt": "a", "prompt_token_ids": [1]}, "prompt_token_ids"),
    "no ids at all": ({"prompt_token_ids": []}, "prompt_token_ids"),
    "a negative id": ({"prompt_token_ids": [1, -1]}, "prompt_token_ids.1"),
    "a fractional id": ({"prompt_token_ids": [1.0]}, "prompt_token_ids.0"),
    "an id that is a truth": ({"prompt_token_ids": [True]}, "prompt_token_ids.0"),
    "ids as text": ({"prompt_token_ids": "123"}, "prompt_token_ids"),
    "an id no vocabulary has": ({"prompt_token_ids": [2**31]}, "prompt_token_ids.0"),
    "a prompt that is a number": ({"prompt": 3}, "prompt"),
    "a prompt that is bytes": ({"prompt": b"hello"}, "prompt"),
    "half a surrogate pair": ({"prompt": "\ud800"}, "prompt"),
    "no messages": ({"messages": []}, "messages"),
    "a message without a role": ({"messages": [{"content": "a"}]}, "messages.0.role"),
    "a message with an unknown field": (
        {"messages": [{"role": "user", "content": "a", "tone": "b"}]},
        "messages.0.tone",
    ),
    "an empty role": ({"messages": [{"role": "", "content": "a"}]}, "messages.0.role"),
    "an unknown field": ({"prompt": "a", "promt": "b"}, "promt"),
    "an unknown lane": ({"prompt": "a", "lane": "urgent"}, "lane"),
    "a tenant with a dot": ({"prompt": "a", "tenant": "a.b"}, "tenant"),
    "an empty tenant": ({"prompt": "a", "tenant": ""}, "tenant"),
    "a tenant that is a number": ({"prompt": "a", "tenant": 3}, "tenant"),
    "an id of no shape": ({"prompt": "a", "id": "my job"}, "id"),
    "an id of another tenant": ({"prompt": "a", "id": "0.other.12345678", "tenant": "me"}, "id"),
    "no time to live": ({"prompt": "a", "result_ttl": 0}, "result_ttl"),
    "a year to live": ({"prompt": "a", "result_ttl": 3e7}, "result_ttl"),
    "a time to live that is no number": ({"prompt": "a", "result_ttl": math.nan}, "result_ttl"),
}
REFUSED_SAMPLING = {
    "temperature": [-0.1, math.nan, math.inf, "1", True],
    "top_p": [0, -1, 1.1, math.nan],
    "top_k": [-1, 1.5],
    "min_p": [-0.1, 1.1, math.nan],
    "repetition_penalty": [0, -1, 2.1, math.nan, "1"],
    "frequency_penalty": [-2.1, 2.1, math.nan, True],
    "presence_penalty": [-2.1, 2.1, math.inf],
    "logit_bias": [[[1, 2.0]], 3, dict.fromkeys(range(301), 0.0)],
    "logit_bias.7": [{7: 100.5}, {"7": -101}, {7: math.nan}, {7: "1"}],
    "logit_bias.a": [{"a": 1.0}],
    "logit_bias.-1": [{-1: 1.0}, {"-1": 1.0}],
    "logit_bias.2147483648": [{2**31: 1.0}],
    "allowed_token_ids": [[], 3, [1] * 4097],
    "allowed_token_ids.0": [[-1], [1.5], [True]],
    "bad_words": ["word", ["x"] * 65],
    "bad_words.0": [[""], [3], ["x" * 257]],
    "logprobs": [-1, 21, 1.5, True],
    "max_tokens": [0, -1, 1.5, "8"],
    "min_tokens": [-1],
    "seed": [-1, 2**63, 0.5],
    "stop": ["end", ["x"] * 17],
    "stop.0": [[3], [""], ["x" * 257]],
    "stop_token_ids": [3, [1] * 65],
    "stop_token_ids.0": [[-1], ["a"]],
    "ignore_eos": [1, "yes"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_that_cannot_be_is_refused_by_its_field(case):
    """The error names the field, what it was and what it may be, on one line."""
    fields, field = REFUSED[case]
    with pytest.raises(InvalidJob) as caught:
        Job(**fields)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: expected ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, bad in REFUSED_SAMPLING.items() for value in bad]
)
def test_sampling_that_cannot_be_is_refused_by_its_field(field, value):
    """Every parameter has a range and a type; what lies outside is refused, also within a job."""
    name = field.partition(".")[0]
    with pytest.raises(InvalidJob) as caught:
        SamplingParams(**{name: value})
    assert caught.value.field == field
    with pytest.raises(InvalidJob) as caught:
        Job(prompt="a", sampling={name: value})
    assert caught.value.field == field


def test_an_unknown_sampling_parameter_is_refused_with_those_there_are():
    """A misspelt parameter is not silently dropped."""
    with pytest.raises(InvalidJob, match=r"temprature.*temperature"):
        SamplingParams(temprature=1.0)


def test_min_tokens_over_max_tokens_is_refused():
    """A job cannot promise more tokens than it allows."""
    with pytest.raises(InvalidJob, match="min_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_the_bounds_themselves_are_allowed():
    """Each range includes the ends it names."""
    SamplingParams(temperature=0, top_p=1, min_p=0, top_k=0, max_tokens=1, seed=2**63 - 1, min_tokens=1)
    SamplingParams(temperature=2, min_p=1.0, stop=["x" * 256] * 16, stop_token_ids=[0] * 64)
    SamplingParams(repetition_penalty=2, frequency_penalty=-2, presence_penalty=2, logprobs=0)
    SamplingParams(logit_bias={token: 100 - token % 201 for token in range(300)}, bad_words=["x" * 256] * 64)
    SamplingParams(allowed_token_ids=range(4096), logprobs=20)


def test_a_bias_is_by_ids_whatever_its_keys_were():
    """JSON has text for keys; in any order it is the same job, so that sending it again is no conflict."""
    bias = SamplingParams(logit_bias={"9": 1, 5: -2.5}).logit_bias
    assert list(bias.items()) == [(5, -2.5), (9, 1.0)]
    assert SamplingParams(logit_bias={"5": -2.5, "9": 1.0}).logit_bias == bias


def test_a_job_keeps_what_it_was_given():
    """A job cannot be changed after it was made, so what was checked is what is sent."""
    job = Job(prompt="a", tenant="me", lane="low")
    assert job.id.startswith("0.me.")
    assert job.partition == 0
    with pytest.raises(ValueError, match="frozen"):
        job.prompt = "b"


def test_ids_are_never_the_same():
    """A thousand new ids are a thousand different ids."""
    assert len({new_job_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("queue", ["", "a b", "a{b}", "x" * 65, "a:b"])
def test_a_queue_cannot_have_any_name(queue):
    """What would break the hash tag or read as another key is refused."""
    with pytest.raises(InvalidJob, match="queue"):
        Keys(queue)


def test_all_keys_of_a_partition_lie_in_one_slot():
    """Every key has the same hash tag, and no two partitions share one."""
    keys = Keys("q", 3)
    names = [
        *keys.lanes,
        keys.job("x"),
        keys.tokens("x"),
        keys.result("x"),
        keys.turns,
        keys.bell,
        keys.control,
        keys.workers,
    ]
    assert all(name.startswith("{slip:q:3}:") for name in names)
    assert len(set(names)) == len(names)


def test_the_running_hash_does_not_depend_on_where_events_were_cut():
    """Token by token or all at once, the hash is the same; one other token makes another."""
    tokens = [5, 0, 131071, 7, 7]
    at_once = running_hash(0, tokens)
    assert running_hash(running_hash(0, tokens[:2]), tokens[2:]) == at_once
    assert running_hash(0, [5, 0, 131071, 7, 8]) != at_once
    assert running_hash(0, [0, 5, 131071, 7, 7]) != at_once
    assert 0 <= at_once < 2**64


def test_an_event_can_be_cut_at_any_token():
    """Ids and text of the rest agree, wherever the cut is."""
    event = Tokens(offset=13, token_ids=[1, 2, 3], pieces=["a", "", "é"], hash=0)
    assert (event.start, event.text) == (10, "aé")
    assert (event.since(10).text, event.since(11).text, event.since(12).text) == ("aé", "é", "é")
    assert [len(event.since(offset).token_ids) for offset in (10, 11, 12)] == [3, 2, 1]
    assert event.since(12).start == 12
    told = event.model_copy(update={"logprobs": tuple(TokenLogprob(logprob=-at) for at in (1.0, 2.0, 3.0))})
    assert [one.logprob for one in told.since(11).logprobs] == [-2.0, -3.0]


def test_an_event_has_log_probabilities_of_all_its_tokens_or_of_none():
    """One too few is no event."""
    with pytest.raises(ValueError, match="2 ids, log-probabilities of 1"):
        Tokens(offset=2, token_ids=[1, 2], pieces=["a", "b"], hash=0, logprobs=(TokenLogprob(logprob=-1.0),))


@pytest.mark.parametrize(
    ("reason", "raised"),
    [("failed", JobFailed), ("cancelled", JobCancelled), ("expired", JobExpired), ("dead", JobDead)],
)
def test_a_bad_end_is_an_exception_for_those_who_ask(reason, raised):
    """raise_for_failure turns each bad end into its own exception, with code and message."""
    error = Failure(code="too_long", message="the prompt is too long")
    result = Result(job_id="0.me.12345678", finish_reason=reason, text="", token_ids=(), error=error)
    assert not result.ok
    with pytest.raises(raised, match=r"too_long.*the prompt is too long"):
        result.raise_for_failure()


def test_a_good_end_is_itself():
    """A result that was asked for comes back from raise_for_failure."""
    result = Result(job_id="0.me.12345678", finish_reason="length", text="a", token_ids=(1,))
    assert result.raise_for_failure() is result


def test_importing_the_producer_loads_no_torch():
    """Another service pays for redis, msgpack and pydantic, and for nothing of the worker's."""
    heavy = "torch transformers triton numpy click".split()
    code = f"import sys, producer; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
