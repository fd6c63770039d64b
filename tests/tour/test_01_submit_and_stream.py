"""1. A job goes in, and its tokens stream out.

All that a service needs is the package `producer` and the address of a Redis. Somewhere a worker runs, here one on the
demo model, a small one that counts, spells and sorts; who runs it, and where, no service has to know.
"""

from producer import Producer
from producer.protocol import Ended, Started, Tokens


def test_a_job_goes_in_and_its_tokens_stream_out(url, worker):
    """`submit` puts a job on the queue, `stream` gives its events: a start, tokens as they are made, an end."""
    with Producer(url) as queue:
        job = queue.submit(prompt="Count from 3 to 17", max_tokens=100)

        text = ""
        for event in queue.stream(job):
            match event:
                case Started():
                    assert event.worker == worker.name
                case Tokens():
                    text += event.text
                case Ended():
                    assert event.reason == "stop"

    assert text.strip() == "3 4 5 6 7 8 9 10 11 12 13 14 15 16 17"


def test_tokens_come_while_others_are_still_being_made(queue, worker):
    """The first tokens are here long before the last: nobody waits for the whole answer."""
    with worker.slow():  # so that this is seen on a fast machine too
        job = queue.submit(prompt="Count from 1 to 100", max_tokens=800, ignore_eos=True)
        events = queue.stream(job)
        first_tokens = next(event for event in events if event.kind == "tokens")
        assert first_tokens.offset < 100
        assert queue.status(job).state == "running"

    assert [event.reason for event in events if event.kind == "ended"] == ["length"]


def test_every_event_says_how_far_the_job_is(queue):
    """`offset` counts the job's tokens so far: there is no gap between two events, and no token comes twice."""
    job = queue.submit(prompt="Count from 1 to 60", max_tokens=200)
    offset = 0
    for event in queue.stream(job):
        if event.kind == "tokens":
            assert event.start == offset
            assert event.offset == offset + len(event.token_ids)
            offset = event.offset
    assert event.kind == "ended"
    assert event.offset == offset == event.usage.completion_tokens


def test_many_jobs_decode_side_by_side(queue, worker):
    """Jobs that are there together share the worker's batch: eight counts are all running at one time."""
    with worker.slow():
        jobs = [queue.submit(prompt=f"Count from {n} to 99", max_tokens=800, ignore_eos=True) for n in range(1, 9)]
        streams = [queue.stream(job) for job in jobs]
        for stream in streams:
            assert next(event for event in stream if event.kind == "tokens")
        assert [queue.status(job).state for job in jobs] == ["running"] * 8
        for job in jobs:
            queue.cancel(job)
