"""8. A conversation.

`messages` instead of a prompt: the worker writes them out as the model was trained to read them, by its chat template.
"""

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def user(content):
    return {"role": "user", "content": content}


def test_a_chat_is_answered(queue):
    """The model's own template makes a prompt of the messages."""
    job = queue.submit(messages=[user("Count from 3 to 9")])
    assert queue.result(job, timeout=60).text == "3 4 5 6 7 8 9"


def test_a_chat_goes_on(queue):
    """The conversation so far, with the model's own answer in it, and the next question."""
    talk = [SYSTEM, user("Count from 3 to 5")]
    answer = queue.result(queue.submit(messages=talk), timeout=60).text

    talk += [{"role": "assistant", "content": answer}, user("Count from 6 to 9")]
    assert queue.result(queue.submit(messages=talk), timeout=60).text == "6 7 8 9"


def test_a_role_the_model_does_not_know_fails_with_its_name(queue):
    """Only the worker knows the template; it ends the job at once and says which roles there are."""
    result = queue.result(queue.submit(messages=[{"role": "narrator", "content": "It was night."}]), timeout=60)
    assert result.finish_reason == "failed"
    assert "narrator" in result.error.message
    assert "expected system, user or assistant" in result.error.message


def test_the_prompt_may_come_as_token_ids(queue):
    """Who has a tokenizer may send ids; they are taken as they are."""
    ids = list(queue.result(queue.submit(prompt="Count from 3 to 5\n"), timeout=60).token_ids)
    result = queue.result(queue.submit(prompt_token_ids=ids[:-1], max_tokens=1), timeout=60)
    assert result.usage.prompt_tokens == len(ids) - 1
