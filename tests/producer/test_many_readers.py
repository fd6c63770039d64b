"""Any number of readers of one AsyncProducer share a connection, and none holds another up."""

from __future__ import annotations

import asyncio

import pytest

from producer import AsyncProducer, Job, Producer, QueueFull, calls, wire
from producer.calls import Publication
from producer.protocol import Result, running_hash

READERS = 2000


def answer(desk, deliveries, tokens=3):
    """Claim jobs and answer each with the same tokens, one a publish."""
    claims = calls.run_many(desk.redis, [calls.claim(desk.keys, d, "a", wire.encode_started("a")) for d in deliveries])
    for at in range(tokens):
        blob = wire.encode_tokens([at], [f"{at} "], running_hash(0, range(at + 1)))
        items = [Publication(claim.delivery.job_id, claim.epoch, at, 1, blob) for claim in claims]
        desk.run(calls.publish(desk.keys, "a", items))
    ends = []
    for claim in claims:
        result = Result(
            job_id=claim.delivery.job_id, finish_reason="stop", text="0 1 2 ", token_ids=tuple(range(tokens))
        )
        ends.append(
            calls.finish(
                desk.keys,
                claim.delivery,
                "a",
                claim.epoch,
                start=tokens,
                ended=wire.encode_ended("stop"),
                result=wire.encode_result(result),
                reason="stop",
            )
        )
    calls.run_many(desk.redis, ends)


async def ids(producer, job):
    return [token async for event in producer.stream(job) if event.kind == "tokens" for token in event.token_ids]


def test_thousands_follow_over_one_connection(redis_url, real_desk, wait_until):
    """Each gets all its tokens in order, and the server counts two connections of the client, not two thousand."""
    jobs = [Job(prompt="x") for _ in range(READERS)]

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many(jobs)
            before = len(real_desk.redis.client_list())
            reading = [asyncio.create_task(ids(producer, job)) for job in jobs]
            await asyncio.sleep(0)  # all have begun
            await asyncio.to_thread(lambda: [answer(real_desk, real_desk.pull("a", room=500)) for _ in range(4)])
            connections = len(real_desk.redis.client_list()) - before
            return await asyncio.wait_for(asyncio.gather(*reading), 120), connections

    found, connections = asyncio.run(follow())
    assert found == [[0, 1, 2]] * READERS
    assert connections <= 3


def test_a_reader_that_never_takes_anything_slows_nobody(redis_url, real_desk):
    """One reads its first event and no more; the others come to their ends, and it goes on where it was."""
    jobs = [Job(prompt="x") for _ in range(5)]

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many(jobs)
            lazy = producer.stream(jobs[0])
            first = asyncio.create_task(anext(lazy))
            others = [asyncio.create_task(ids(producer, job)) for job in jobs[1:]]
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: answer(real_desk, real_desk.pull("a", room=5)))
            assert await asyncio.wait_for(asyncio.gather(*others), 60) == [[0, 1, 2]] * 4
            assert (await first).kind == "started"
            return [event.kind async for event in lazy]

    assert asyncio.run(follow()) == ["tokens", "tokens", "tokens", "ended"]


def test_a_reader_that_joins_while_the_others_wait_is_let_in(redis_url, real_desk):
    """The shared read blocks for seconds; who comes meanwhile does not wait for it."""
    waiting, ended = Job(prompt="x", lane="low"), Job(prompt="x", lane="high")

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many([ended, waiting])
            await asyncio.to_thread(lambda: answer(real_desk, real_desk.pull("a", room=1)))
            first = asyncio.create_task(ids(producer, waiting))
            while not any(client["cmd"].startswith("xread") for client in real_desk.redis.client_list()):
                await asyncio.sleep(0.01)
            async with asyncio.timeout(2.5):  # half of what the read blocks for
                late = await ids(producer, ended)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return late

    assert asyncio.run(follow()) == [0, 1, 2]


def test_a_late_job_that_no_worker_ends_is_ended_by_its_reader(redis_url, real_desk):
    """Redis' clock decides; the reader is told `expired`."""
    with Producer(redis_url, queue="test") as producer:
        job = producer.submit(prompt="x")
        real_desk.redis.hset(real_desk.keys.job(job), "deadline", 1)
        assert producer.result(job, timeout=30).finish_reason == "expired"


def test_a_submit_waits_politely_for_room(redis_url, real_desk):
    """Within its patience it gets in once there is room; without any it is refused with the queue's figures."""
    real_desk.redis.hset(real_desk.keys.control, "max_depth", 1)
    with Producer(redis_url, queue="test") as producer:
        producer.submit(prompt="x")
        with pytest.raises(QueueFull):
            producer.submit(prompt="x", wait=0.1)

        async def wait_for_room():
            async with AsyncProducer(redis_url, queue="test") as waiting:
                submitting = asyncio.create_task(waiting.submit(prompt="x", wait=60))
                await asyncio.to_thread(lambda: answer(real_desk, real_desk.pull("a")))
                return await asyncio.wait_for(submitting, 60)

        assert producer.status(asyncio.run(wait_for_room())).state == "queued"
