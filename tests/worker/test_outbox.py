"""The way out: whatever gets lost between a worker and Redis, a job's stream has each token once, in order."""

from __future__ import annotations

import pytest
import redis

from producer import calls, wire
from tests.worker.conftest import RedisHalf

KEYS = RedisHalf.KEYS


@pytest.fixture
def tokens(text):
    """The ids that the text "1 2 3 ... 9" is made of."""
    return text.encode_prompt("1 2 3 4 5 6 7 8 9")[1:]


@pytest.fixture
def begun(half, producer):
    """A worker's half, and a job that it has taken."""
    anna = half("anna")
    producer.submit(prompt="Count from 1 to 9", max_tokens=100)
    (job,) = anna.take()
    return anna, job


def published(connection, job):
    """The tokens in a job's stream."""
    events = [wire.decode_event(*entry) for entry in connection.xrange(KEYS.tokens(job.job_id))]
    return [token for event in events if event.kind == "tokens" for token in event.token_ids]


def set_back(connection, job, to):
    """A failover to a replica that lacks the newest entries: the stream as it was."""
    connection.restore(KEYS.tokens(job.job_id), 0, to, replace=True)


def flush_twice(half):
    """The first flush finds the gap, the second one fills it."""
    half.outbox.flush()
    half.outbox.flush()


def test_tokens_are_in_the_stream_after_a_flush_and_the_end_after_the_last(begun, producer, tokens, no_leaked_keys):
    """What a reader sees is what the engine made, with its text."""
    anna, job = begun
    anna.emit(job, tokens[:4])
    anna.outbox.flush()
    assert published(anna.redis, job) == tokens[:4]
    anna.emit(job, tokens[4:], "stop")
    anna.outbox.flush()
    assert anna.outbox.is_empty
    result = producer.result(job.job_id, timeout=10)
    assert (result.text, result.token_ids) == ("1 2 3 4 5 6 7 8 9", tuple(tokens))


def test_a_stop_string_among_several_tokens_of_a_step_ends_the_job_there(half, producer, text):
    """What the step gave beyond it is dropped, and the engine is told to forget the sequence."""
    anna = half("anna")
    producer.submit(prompt="Count from 1 to 9", stop=["4"], max_tokens=100)
    (job,) = anna.take()
    several = text.encode_prompt("1 2 3 4 5 6")[1:]
    assert anna.outbox.take([(job.sequence_id, several, None, None, 0, None)]) == [job.sequence_id]
    anna.outbox.flush()
    result = producer.result(job.job_id, timeout=10)
    assert (result.text, result.finish_reason) == ("1 2 3 ", "stop")
    assert list(result.token_ids) == text.encode_prompt("1 2 3 4")[1:]


def test_a_flush_whose_answer_was_lost_is_made_again_and_doubles_nothing(begun, tokens):
    """Redis has the tokens, the worker does not know: it sends them again, and with them what came since."""
    anna, job = begun
    anna.emit(job, tokens[:4])
    anna.redis.answers_to_lose = 1
    with pytest.raises(redis.ConnectionError):
        anna.outbox.flush()
    assert anna.outbox.unpublished == 4

    anna.outbox.flush()
    assert published(anna.redis, job) == tokens[:4]
    assert anna.outbox.unpublished == 0


def test_after_a_lost_answer_newer_tokens_follow_without_gap_or_repeat(begun, tokens):
    """The stream ends inside what is sent again: only what lies behind its end is added."""
    anna, job = begun
    anna.emit(job, tokens[:4])
    anna.redis.answers_to_lose = 1
    with pytest.raises(redis.ConnectionError):
        anna.outbox.flush()
    anna.emit(job, tokens[4:7])
    flush_twice(anna)
    assert published(anna.redis, job) == tokens[:7]


def test_an_end_whose_answer_was_lost_ends_the_job_once(begun, producer, tokens):
    """The second finish is recognised; the result is the first one's."""
    anna, job = begun
    anna.emit(job, tokens, "stop")
    anna.redis.answers_to_lose = 1
    with pytest.raises(redis.ConnectionError):
        anna.outbox.flush()
    anna.outbox.flush()
    assert anna.outbox.is_empty
    assert [event.kind for event in producer.stream(job.job_id)].count("ended") == 1
    assert producer.result(job.job_id).token_ids == tuple(tokens)


def test_tokens_that_a_failover_lost_are_published_again_from_memory(begun, tokens):
    """The stream is shorter than what was published: the gap is healed before anything newer comes."""
    anna, job = begun
    anna.emit(job, tokens[:2])
    anna.outbox.flush()
    snapshot = anna.redis.dump(KEYS.tokens(job.job_id))
    anna.emit(job, tokens[2:5])
    anna.outbox.flush()

    set_back(anna.redis, job, snapshot)
    anna.emit(job, tokens[5:7])
    flush_twice(anna)

    assert published(anna.redis, job) == tokens[:7]


def test_a_gap_found_at_the_end_is_healed_before_the_end_is_written(begun, producer, tokens):
    """Finishing answers with the gap; what is missing is published with the end."""
    anna, job = begun
    snapshot = anna.redis.dump(KEYS.tokens(job.job_id))
    anna.emit(job, tokens[:6])
    anna.outbox.flush()
    set_back(anna.redis, job, snapshot)
    anna.emit(job, tokens[6:], "stop")
    flush_twice(anna)
    assert published(anna.redis, job) == tokens
    assert producer.result(job.job_id).token_ids == tuple(tokens)


def test_a_cancelled_job_is_dropped_and_its_sequence_named(begun, producer, tokens):
    """Even one that has nothing to publish learns of it at the next flush, so that its row becomes free."""
    anna, job = begun
    producer.cancel(job.job_id)
    assert anna.outbox.flush() == [job.sequence_id]
    assert anna.outbox.is_empty
    anna.emit(job, tokens)  # the engine may have a step under way
    assert anna.outbox.flush() == []
    assert published(anna.redis, job) == []


def test_a_lost_job_is_named_even_if_the_flush_that_found_it_fails(half, producer, tokens):
    """Its first half finds a job cancelled, its second half loses its answer: the row must still be freed."""
    anna = half("anna")
    for _ in range(2):
        producer.submit(prompt="Count from 1 to 9", max_tokens=100)
    cancelled, ended = anna.take()
    producer.cancel(cancelled.job_id)
    anna.emit(ended, tokens, "stop")
    make, losses = anna.redis.pipeline, iter([0, 1])
    anna.redis.pipeline = lambda *args, **options: lose_answers(anna.redis, next(losses), make(*args, **options))

    with pytest.raises(redis.ConnectionError):
        anna.outbox.flush()

    del anna.redis.pipeline
    assert anna.outbox.flush() == [cancelled.sequence_id]
    assert anna.outbox.is_empty


def lose_answers(connection, count, pipeline):
    connection.answers_to_lose = count
    return pipeline


def test_a_job_that_was_taken_over_is_left_to_its_new_owner(begun, half, tokens):
    """Nothing that the old owner still sends gets in; the new one's tokens follow on."""
    anna, job = begun
    anna.emit(job, tokens[:3])
    anna.outbox.flush()
    ben = half("ben")
    (same,) = ben.take_over()

    anna.emit(job, tokens[3:6])
    assert anna.outbox.flush() == [job.sequence_id]
    assert published(anna.redis, job) == tokens[:3]
    ben.emit(same, tokens[3:5])
    ben.outbox.flush()
    assert published(anna.redis, job) == tokens[:5]


def test_a_stop_string_is_held_back_until_it_is_one_or_none(half, producer, tokens):
    """Tokens wait with their text; where the stop string completes, the text ends before it and the engine is told."""
    anna = half("anna")
    producer.submit(prompt="Count from 1 to 9", max_tokens=100, stop=[" 4 5"])
    (job,) = anna.take()
    anna.emit(job, tokens[:4])
    anna.outbox.flush()
    assert published(anna.redis, job) == tokens[:3]

    assert anna.outbox.take([(job.sequence_id, [tokens[4]], None, None, 0, None)]) == [job.sequence_id]
    anna.outbox.flush()
    result = producer.result(job.job_id, timeout=10)
    assert (result.text, result.finish_reason) == ("1 2 3", "stop")


def test_first_tokens_and_ends_do_not_wait_for_the_interval(begun, tokens):
    """`urgent` asks for a flush at once: for a job's first token and its last, not for those between."""
    anna, job = begun
    anna.emit(job, tokens[:1])
    assert anna.outbox.urgent
    anna.outbox.flush()
    anna.emit(job, tokens[1:3])
    assert not anna.outbox.urgent
    anna.emit(job, tokens[3:], "length")
    assert anna.outbox.urgent


def test_what_the_engine_gives_up_ends_as_failed_with_the_tokens_it_had(begun, producer, tokens):
    """A fault in the middle of a job: code and message for its reader, and what was made stays."""
    anna, job = begun
    anna.emit(job, tokens[:3])
    anna.outbox.take([(job.sequence_id, [], "failed", "no finite logit", 0, None)])
    anna.outbox.flush()
    result = producer.result(job.job_id, timeout=10)
    assert (result.finish_reason, result.text) == ("failed", "1 2 3")
    assert (result.error.code, result.error.message) == ("generation_failed", "no finite logit")


def test_what_the_engine_refuses_ends_as_failed_and_what_is_gone_is_passed_over(begun, producer):
    """A refusal may come after the job was cancelled: then there is nothing to end."""
    anna, job = begun
    anna.outbox.fail(job.sequence_id, "unservable", "max_tokens: too many")
    anna.outbox.flush()
    assert calls.run(anna.redis, calls.status(KEYS, job.job_id)).state == "failed"
    anna.outbox.fail(job.sequence_id, "unservable", "once more")
    assert anna.outbox.is_empty


def test_a_result_says_how_much_of_its_prompt_was_in_the_cache(begun, producer, tokens):
    """As the engine reports it with the job's tokens."""
    anna, job = begun
    anna.outbox.take([(job.sequence_id, tokens[:1], "length", None, 3, None)])
    anna.outbox.flush()
    usage = producer.result(job.job_id, timeout=10).usage
    assert (usage.cached_tokens, usage.completion_tokens) == (3, 1)


def told(token_ids):
    """A log-probability for each token, told by which it is."""
    return [(-token / 8, [token, token + 1], [-token / 8, -token / 4]) for token in token_ids]


def logprobs_of(events_or_result):
    return [(one.logprob, [id_ for id_, _ in one.top], [value for _, value in one.top]) for one in events_or_result]


def test_log_probabilities_go_out_with_their_tokens_also_those_that_were_held_back(half, producer, tokens):
    """A stop string holds tokens back, a second owner takes over between them: each token keeps its own."""
    anna, bert = half("anna"), half("bert")
    job_id = producer.submit(prompt="Count from 1 to 9", max_tokens=100, stop=[" 4 5 X"], logprobs=2)
    (job,) = anna.take()
    anna.outbox.take([(job.sequence_id, tokens[:4], None, None, 0, told(tokens[:4]))])
    anna.outbox.flush()
    assert published(anna.redis, job) == tokens[:3]

    (job,) = bert.take_over()
    assert job.token_ids == tokens[:3]
    bert.outbox.take([(job.sequence_id, tokens[3:8], None, None, 0, told(tokens[3:8]))])
    bert.outbox.flush()
    bert.outbox.take([(job.sequence_id, tokens[8:], "stop", None, 0, told(tokens[8:]))])
    bert.outbox.flush()

    result = producer.result(job_id, timeout=10)
    assert result.token_ids == tuple(tokens)
    assert logprobs_of(result.logprobs) == told(tokens)
    events = [event for event in producer.stream(job_id) if event.kind == "tokens"]
    assert [one for event in events for one in logprobs_of(event.logprobs)] == told(tokens)
    late = [event for event in producer.stream(job_id, from_offset=5) if event.kind == "tokens"]
    assert [one for event in late for one in logprobs_of(event.logprobs)] == told(tokens[5:])


def test_a_job_taken_out_of_the_engine_keeps_the_log_probabilities_it_has_published(half, producer, text, tokens):
    """What its text held back is drawn again, and told once."""
    anna = half("anna")
    job_id = producer.submit(prompt="Count from 1 to 9", max_tokens=100, stop=[" 4 5 X"], logprobs=2)
    (job,) = anna.take()
    anna.outbox.take([(job.sequence_id, tokens[:4], None, None, 0, told(tokens[:4]))])
    anna.outbox.flush()
    job.begin_again(text)
    anna.outbox.take([(job.sequence_id, tokens[3:], "length", None, 0, told(tokens[3:]))])
    anna.outbox.flush()
    assert logprobs_of(producer.result(job_id, timeout=10).logprobs) == told(tokens)
