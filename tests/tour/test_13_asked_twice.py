"""13. Asked twice, answered once.

A service that dies after `submit` and before it has noted the id asks again. With an `idempotency_key` that is the
first job, not a second one.
"""

import pytest

from producer import IdempotencyConflict


def test_the_same_key_is_the_same_job(queue):
    """Also when the first has long ended: the answer is there at once."""
    first = queue.submit(prompt="Count from 3 to 6", idempotency_key="invoice 7")
    answer = queue.result(first, timeout=60)
    assert queue.submit(prompt="Count from 3 to 6", idempotency_key="invoice 7") == first
    assert queue.result(first) == answer


def test_a_key_belongs_to_its_tenant(queue):
    """Two tenants may use the same key for jobs of their own."""
    fields = {"prompt": "Count from 3 to 6", "idempotency_key": "invoice 8"}
    assert queue.submit(**fields, tenant="anna") != queue.submit(**fields, tenant="bert")


def test_another_question_under_a_key_is_a_conflict(queue):
    """The first job is untouched, and the second one was never accepted."""
    first = queue.submit(prompt="Count from 3 to 6", idempotency_key="invoice 9")
    with pytest.raises(IdempotencyConflict):
        queue.submit(prompt="Count from 4 to 6", idempotency_key="invoice 9")
    assert queue.result(first, timeout=60).text.split() == ["3", "4", "5", "6"]
