"""2. Only the answer, please.

Not everybody wants to watch. `result` waits for the end and has the whole answer; so has anyone who knows the job's id.
"""

import pytest

from producer import Job, JobFailed, Producer, ResultTimeout


def test_the_result_is_the_whole_answer(queue):
    """The text, its tokens, why it ended, what it cost and how long each part took."""
    result = queue.result(queue.submit(prompt="Count from 8 to 12\n", max_tokens=60), timeout=60)

    assert result.text == "8 9 10 11 12"
    assert result.finish_reason == "stop"
    assert result.ok
    assert result.usage.completion_tokens == len(result.token_ids)
    assert 0 <= result.timings.queued_s <= result.timings.first_token_s <= result.timings.total_s


def test_the_result_is_what_was_streamed(queue):
    """Both ways of reading give the same tokens and the same text."""
    job = queue.submit(prompt="Spell the word stream", max_tokens=60)
    tokens = [event for event in queue.stream(job) if event.kind == "tokens"]
    result = queue.result(job, timeout=60)
    assert result.token_ids == tuple(token for event in tokens for token in event.token_ids)
    assert result.text == "".join(event.text for event in tokens)


def test_whoever_knows_the_id_can_ask_for_it(queue, url):
    """A job is no connection: another service, another day (within `result_ttl`), as often as it likes."""
    job = queue.submit(prompt="Spell the word river", max_tokens=60, result_ttl=3600)
    answer = queue.result(job, timeout=60).text
    with Producer(url) as another_service:
        assert another_service.result(job).text == answer
        assert another_service.result(job).text == answer


def test_many_jobs_go_in_at_once(queue):
    """`submit_many` sends hundreds in one round trip and gives their ids in order."""
    jobs = [Job(prompt=f"Count from {n} to {n + 2}\n") for n in range(10, 30)]
    ids = queue.submit_many(jobs)
    answers = [queue.result(job, timeout=60).text for job in ids]
    assert answers == [f"{n} {n + 1} {n + 2}" for n in range(10, 30)]


def test_one_who_can_not_wait_is_told_so_and_the_job_goes_on(queue, worker):
    """After `timeout` seconds `result` gives up; the job does not."""
    with worker.slow():
        job = queue.submit(prompt="Count from 1 to 100", max_tokens=800, ignore_eos=True)
        with pytest.raises(ResultTimeout, match="it goes on"):
            queue.result(job, timeout=0.01)
    assert queue.result(job, timeout=120).usage.completion_tokens == 800


def test_a_job_that_can_not_be_answered_says_why(queue):
    """A failure is a result too, with a code for programs and a sentence for people; or an exception, if one asks."""
    result = queue.result(queue.submit(prompt="Hello", model="a-larger-one"), timeout=60)
    assert result.finish_reason == "failed"
    assert result.error.code == "model_not_served"
    with pytest.raises(JobFailed, match="this queue serves"):
        result.raise_for_failure()
