"""The way in: what a worker takes it has, whatever answers were lost; what was decided about a job stays decided."""

from __future__ import annotations

import json
import shutil

import pytest
import redis

from producer import wire
from tests.worker.conftest import RedisHalf
from tests.worker.process import DEMO_MODEL
from worker.jobs import JobRefused, Resolved, decide
from worker.text import TextModel

KEYS = RedisHalf.KEYS


@pytest.fixture
def tokens(text):
    return text.encode_prompt("1 2 3 4 5 6 7 8 9")[1:]


def test_exactly_as_much_is_pulled_as_there_is_room_for(half, producer):
    """What there is no room for stays where every other worker sees it."""
    jobs = [producer.submit(prompt="Hello") for _ in range(5)]
    anna, ben = half("anna"), half("ben")
    assert [job.job_id for job in anna.take(room=2)] == jobs[:2]
    assert [job.job_id for job in ben.take(room=8)] == jobs[2:]


def test_jobs_of_a_pull_whose_answer_was_lost_are_found_again(half, producer):
    """They are this worker's without its knowing; its next pull asks for them first."""
    jobs = [producer.submit(prompt="Hello") for _ in range(3)]
    anna = half("anna")
    held = anna.take(room=1)
    anna.redis.answers_to_lose = 1
    with pytest.raises(redis.ConnectionError):
        anna.inbox.pull(1, [job.delivery for job in held])
    assert [job.job_id for job in anna.take(room=2)] == jobs[1:]


def test_jobs_of_a_reclaim_whose_answer_was_lost_are_found_again(half, producer):
    """Nobody has to wait for another lease: the next pull brings them."""
    producer.submit(prompt="Hello")
    anna, ben = half("anna"), half("ben")
    (job,) = anna.take()
    ben.redis.answers_to_lose = 1
    with pytest.raises(redis.ConnectionError):
        ben.inbox.reclaim(0, 8)
    assert [same.job_id for same in ben.take()] == [job.job_id]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_claim_or_resolution_whose_answer_was_lost_is_made_again(half, producer, text, lost):
    """The job is begun once, by what was decided first."""
    job_id = producer.submit(prompt="Hello", temperature=1.0)
    anna = half("anna")
    anna.inbox.pull(1, [])
    for _ in range(lost):
        anna.redis.answers_to_lose = 1
        with pytest.raises(redis.ConnectionError):
            anna.admit()
    (job,) = anna.admit()
    assert job.resolved == Resolved.unpack(anna.redis.hget(KEYS.job(job_id), "resolved"))
    anna.emit(job, text.encode_prompt("1 2 3")[1:], "stop")
    anna.outbox.flush()
    assert producer.result(job_id, timeout=10).text == "1 2 3"


def test_a_new_owner_goes_by_what_the_first_decided(half, producer, tokens):
    """The seed that was drawn, the prompt's ids, the length: all as it was, and the tokens that are out."""
    producer.submit(prompt="Count from 1 to 9", temperature=1.0)
    anna, ben = half("anna"), half("ben")
    (job,) = anna.take()
    anna.emit(job, tokens[:4])
    anna.outbox.flush()

    (same,) = ben.take_over()

    assert same.resolved == job.resolved
    assert same.token_ids == tokens[:4]
    assert same.unpublished == 0
    ben.emit(same, tokens[4:], "stop")
    ben.outbox.flush()
    result = producer.result(job.job_id, timeout=10)
    assert (result.text, result.token_ids) == ("1 2 3 4 5 6 7 8 9", tuple(tokens))


def test_tokens_that_were_held_back_are_made_again_by_the_new_owner(half, producer, tokens):
    """A stop string that was half there: its reader had not seen it, so the new owner begins before it."""
    job_id = producer.submit(prompt="Count from 1 to 9", stop=[" 4 5"])
    anna, ben = half("anna"), half("ben")
    (job,) = anna.take()
    anna.emit(job, tokens[:4])
    anna.outbox.flush()

    (same,) = ben.take_over()

    assert same.token_ids == tokens[:3]
    ben.emit(same, tokens[3:5])
    ben.outbox.flush()
    assert producer.result(job_id, timeout=10).text == "1 2 3"


@pytest.mark.parametrize(
    ("sampling", "made", "reason"),
    [({"max_tokens": 5}, 5, "length"), ({"stop_token_ids": [999]}, 4, "stop"), ({"stop": [" 4 5 6"]}, 6, "stop")],
)
def test_a_job_whose_tokens_are_all_out_ends_without_another_step(half, producer, tokens, sampling, made, reason):
    """Its owner died between the last token and the end: the new one replays the rules and ends it."""
    if "stop_token_ids" in sampling:
        sampling = {"stop_token_ids": [tokens[made - 1]]}
    producer.submit(prompt="Count from 1 to 9", **sampling)
    anna, ben = half("anna"), half("ben")
    (job,) = anna.take()
    job.token_ids, job.texts = tokens[:made], ["?"] * made  # all published, as a worker that dies now leaves it
    anna.outbox.flush()

    (same,) = ben.take_over()

    assert same.ended == (reason, None)
    ben.outbox.flush()
    assert producer.result(job.job_id, timeout=10).finish_reason == reason


def test_what_an_earlier_owner_left_unreadable_fails_that_job_alone(half, producer, tokens):
    """Damage in one job's stream is that job's end; its neighbour is taken over."""
    producer.submit(prompt="Hello")
    producer.submit(prompt="Hello")
    anna, ben = half("anna"), half("ben")
    damaged, whole = anna.take()
    anna.redis.xadd(KEYS.tokens(damaged.job_id), {"t": b"\xc1"}, id=f"{damaged.epoch}-3")
    anna.emit(whole, tokens[:2])
    anna.outbox.flush()

    assert [job.job_id for job in ben.take_over()] == [whole.job_id]
    ben.outbox.flush()
    result = producer.result(damaged.job_id, timeout=10)
    assert (result.finish_reason, result.error.code) == ("failed", "unreadable")


@pytest.fixture(scope="module")
def another_text(tmp_path_factory):
    """Another model: the same tokens, written out by another template."""
    directory = shutil.copytree(DEMO_MODEL, tmp_path_factory.mktemp("another") / "model")
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    return TextModel.from_pretrained(str(directory))


def test_another_models_job_is_handed_back_once_it_has_tokens(redis_url, half, producer, tokens, another_text):
    """Its tokens would not go together. A worker of the first model takes it at once."""
    producer.submit(prompt="Count from 1 to 9")
    anna, other, ben = half("anna"), RedisHalf(redis_url, "other", another_text), half("ben")
    (job,) = anna.take()
    anna.emit(job, tokens[:4])
    anna.outbox.flush()

    assert other.take_over() == []
    other.redis.close()

    (same,) = ben.take()
    assert (same.job_id, same.token_ids) == (job.job_id, tokens[:4])


def test_another_models_job_without_tokens_is_decided_anew(redis_url, half, producer, another_text):
    """Nobody has seen anything of it yet."""
    producer.submit(prompt="Count from 1 to 9")
    anna, other = half("anna"), RedisHalf(redis_url, "other", another_text)
    (job,) = anna.take()
    (same,) = other.take_over()
    other.redis.close()
    assert same.job_id == job.job_id
    assert same.resolved.seed != job.resolved.seed


def test_a_jobs_own_values_come_first_then_the_models_then_plain_ones(text, tmp_path):
    """What a job leaves open is the model's generation config; where that is silent too, greedy and all the room."""
    directory = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 7, "eos_token_id": [2, 5]}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    warm = TextModel.from_pretrained(str(directory))
    silent = wire.decode_job(b'{"v": 1, "prompt": "Hello"}', "0.default.0123456789")
    asking = b'{"v": 1, "prompt": "Hello", "sampling": {"temperature": 0.9, "stop_token_ids": [9], "max_tokens": 3}}'

    by_the_model = decide(silent, warm, "demo", 100)
    assert (by_the_model.temperature, by_the_model.top_k, by_the_model.stop_ids) == (0.5, 7, [2, 5])
    assert by_the_model.max_tokens == 100 - len(by_the_model.prompt_ids)
    by_the_job = decide(wire.decode_job(asking, "0.default.0123456789"), warm, "demo", 100)
    assert (by_the_job.temperature, by_the_job.top_k, by_the_job.stop_ids) == (0.9, 7, [2, 5, 9])
    assert by_the_job.max_tokens == 3
    assert decide(silent, text, "demo", 100).temperature == 0


def test_a_prompt_as_long_as_the_model_leaves_no_room_to_answer(text):
    """One token of room is enough, none is not."""
    job = wire.decode_job(b'{"v": 1, "prompt_token_ids": [7, 7, 7, 7]}', "0.default.0123456789")
    assert decide(job, text, "demo", 5).max_tokens == 1
    with pytest.raises(JobRefused, match="4 tokens leave no room to answer; this worker takes 4"):
        decide(job, text, "demo", 4)


def test_a_claim_whose_answer_was_lost_is_one_delivery(half, producer):
    """Made again it is the same claim: one start event, counted once."""
    job_id = producer.submit(prompt="Hello")
    anna = half("anna")
    anna.inbox.pull(1, [])
    anna.redis.answers_to_lose = 1
    with pytest.raises(redis.ConnectionError):
        anna.inbox.take()
    (job,) = anna.admit()
    assert (job.job_id, producer.status(job_id).deliveries) == (job_id, 1)
    assert anna.redis.xlen(KEYS.tokens(job_id)) == 1


def test_a_worker_that_overslept_does_not_take_over_from_itself(half, producer):
    """What its own reclaim finds is what it has: nothing is begun twice, and the leases are fresh."""
    producer.submit(prompt="Hello")
    anna, ben = half("anna"), half("ben")
    (job,) = anna.take()
    while not anna.inbox.reclaim(0, 8, [item.delivery for item in anna.outbox.held]):
        pass
    assert (anna.admit(), anna.inbox.counts["reclaimed"]) == ([], 0)
    anna.emit(job, [5, 6], "stop")
    anna.outbox.flush()
    assert producer.status(job.job_id).state == "stop"
    assert ben.take() == []


@pytest.mark.parametrize("what", ["job", "tokens"])
def test_a_job_whose_keys_someone_overwrote_stops_nobody(half, producer, what):
    """It becomes a dead letter, is counted, and its neighbour runs."""
    broken, fine = producer.submit(prompt="Hello"), producer.submit(prompt="Hello")
    anna = half("anna")
    anna.redis.set(getattr(KEYS, what)(broken), "something else")
    assert [job.job_id for job in anna.take()] == [fine]
    assert anna.inbox.counts["broken"] == 1
    assert anna.redis.xlen(KEYS.dead) == 1


def test_events_that_are_overwritten_under_a_running_job_make_it_a_dead_letter(half, producer):
    """The worker lets it go at its next flush; its neighbour's tokens are published all the same."""
    broken, fine = producer.submit(prompt="Hello"), producer.submit(prompt="Hello")
    anna = half("anna")
    first, second = anna.take()
    anna.redis.set(KEYS.tokens(broken), "something else")
    for job in (first, second):
        anna.emit(job, [5, 6])
    assert anna.outbox.flush() == [first.sequence_id]
    assert [job.job_id for job in anna.outbox.jobs.values()] == [fine]
    assert (producer.status(broken).state, producer.status(fine).offset) == ("dead", 2)


def test_events_that_are_deleted_under_a_running_job_are_written_again(half, producer):
    """The worker has them all in memory."""
    job_id = producer.submit(prompt="Hello")
    anna = half("anna")
    (job,) = anna.take()
    anna.emit(job, [5, 6])
    anna.outbox.flush()
    anna.redis.delete(KEYS.tokens(job_id))
    anna.emit(job, [7], "stop")
    anna.outbox.flush()
    anna.outbox.flush()
    assert producer.result(job_id, timeout=20).token_ids == (5, 6, 7)
    assert [event.offset for event in producer.stream(job_id)][-1] == 3


def test_a_job_past_its_strikes_or_deliveries_ends_as_dead(half, producer):
    """Its reader is told, with the tokens it had; a dead letter has its payload."""
    job_id = producer.submit(prompt="Hello")
    anna, ben = half("anna"), half("ben")
    (job,) = anna.take()
    anna.emit(job, [5])
    anna.outbox.flush()
    anna.redis.hset(KEYS.job(job_id), "strikes", 4)
    assert ben.take_over() == []
    ben.outbox.flush()
    result = producer.result(job_id, timeout=20)
    assert (result.finish_reason, result.error.code, result.token_ids) == ("dead", "strikes", (5,))
    assert ben.inbox.counts["dead"] == 1
    assert ben.redis.xlen(KEYS.dead) == 1
