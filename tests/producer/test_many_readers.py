"""Any number of readers of one AsyncProducer share a connection, and none holds another up."""

from __future__ import annotations

import asyncio

import pytest

from producer import AsyncProducer, Job, Producer, QueueFull, RedisUnavailable, calls, connection, followers, wire
from producer.calls import Publication
from producer.followers import INBOX, Followers
from producer.keys import Keys
from producer.protocol import Result, running_hash

READERS = 2000
WOKEN_WITHIN_S = 60


@pytest.fixture
def long_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared read blocks for longer than any machine takes to end it: who comes back within a minute was woken."""
    for module in (connection, followers):
        monkeypatch.setattr(module, "BLOCK_S", 10.0 * WOKEN_WITHIN_S)


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


@pytest.mark.usefixtures("long_reads")
def test_a_reader_that_joins_while_the_others_wait_is_let_in(redis_url, real_desk):
    """The shared read blocks for long; who comes meanwhile does not wait for it."""
    waiting, ended = Job(prompt="x", lane="low"), Job(prompt="x", lane="high")

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many([ended, waiting])
            await asyncio.to_thread(lambda: answer(real_desk, real_desk.pull("a", room=1)))
            first = asyncio.create_task(ids(producer, waiting))
            while not any(client["cmd"].startswith("xread") for client in real_desk.redis.client_list()):
                await asyncio.sleep(0.01)
            async with asyncio.timeout(WOKEN_WITHIN_S):
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


def test_readers_of_one_job_have_places_of_their_own(redis_url, real_desk):
    """One began early, one comes from the middle, one waits for the result: each is told what it has not."""
    job = real_desk.submit()
    claim = real_desk.take("a")

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            early = producer.stream(job)
            assert (await anext(early)).kind == "started"
            whole = asyncio.create_task(producer.result(job))
            await asyncio.to_thread(real_desk.publish, claim, "a", 0, [1, 2, 3])
            assert (await anext(early)).token_ids == (1, 2, 3)
            late = producer.stream(job, from_offset=2)
            assert (await anext(late)).token_ids == (3,)
            await asyncio.to_thread(real_desk.finish, claim, "a", 3, [4])
            told = [[event.kind async for event in stream] for stream in (early, late)]
            return told, (await whole).finish_reason

    assert asyncio.run(asyncio.wait_for(follow(), 60)) == ([["tokens", "ended"]] * 2, "stop")


def test_a_reader_that_lags_is_read_for_no_further_and_misses_nothing(redis_url, real_desk):
    """While it takes nothing only a few of its events are in this process; Redis has the others for later."""
    jobs = [Job(prompt="x"), Job(prompt="x")]

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many(jobs)
            claims = [real_desk.take("a"), real_desk.take("a")]
            lazy, prompt = producer.stream(jobs[0]), producer.stream(jobs[1])
            await anext(lazy)
            reader = lazy.ag_frame.f_locals["reader"]
            for at in range(100):  # the other is told each at once
                for claim in claims:
                    await asyncio.to_thread(real_desk.publish, claim, "a", at, [at])
                while (await anext(prompt)).kind != "tokens":
                    pass
            held = len(reader._inbox)
            for claim in claims:
                await asyncio.to_thread(real_desk.finish, claim, "a", 100)
            rest = [token async for event in lazy if event.kind == "tokens" for token in event.token_ids]
            return held, rest

    held, rest = asyncio.run(asyncio.wait_for(follow(), 120))
    assert held == INBOX
    assert rest == list(range(100))


def test_all_readers_go_on_after_cut_connections(redis_url, real_desk):
    """Every connection is killed in mid-stream, twice: each of a hundred readers has each token once."""
    jobs = [Job(prompt="x") for _ in range(100)]

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many(jobs)
            deliveries = real_desk.pull("a", room=100)
            claims = [real_desk.claim(delivery, "a") for delivery in deliveries]
            streams = [producer.stream(claim.delivery.job_id) for claim in claims]
            seen = {claim.delivery.job_id: [] for claim in claims}
            for at in range(2):
                real_desk.run(calls.publish(real_desk.keys, "a", [one(claim, at) for claim in claims]))
                for claim, stream in zip(claims, streams, strict=True):
                    while len(seen[claim.delivery.job_id]) == at:
                        event = await anext(stream)
                        seen[claim.delivery.job_id] += event.token_ids if event.kind == "tokens" else ()
                real_desk.redis.client_kill_filter(_type="normal", skipme=True)
            for claim in claims:
                real_desk.finish(claim, "a", 2)
            ends = [[event.kind async for event in stream] for stream in streams]
            return list(seen.values()), ends

    seen, ends = asyncio.run(asyncio.wait_for(follow(), 60))
    assert seen == [[0, 1]] * 100
    assert ends == [["ended"]] * 100


def one(claim, at):
    """The token `at` of a job whose tokens count up from 0."""
    blob = wire.encode_tokens([at], [f"{at} "], running_hash(0, range(at + 1)))
    return Publication(claim.delivery.job_id, claim.epoch, at, 1, blob)


@pytest.mark.usefixtures("long_reads")
def test_cancelled_readers_leave_nothing_behind(redis_url, real_desk, no_leaked_keys):
    """A hundred tasks are cancelled in the midst of their waiting: no reader, no question, no task is left."""
    jobs = [Job(prompt="x") for _ in range(100)]

    async def follow():
        before = asyncio.all_tasks()
        async with AsyncProducer(redis_url, queue="test") as producer:
            await producer.submit_many(jobs)
            reading = [asyncio.create_task(producer.result(job)) for job in jobs]
            (followers,) = await until(lambda: list(producer._followers.values()))
            await until(lambda: len(followers._readers) == 100)
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            await until(lambda: not followers._tasks)  # the read it waits in is woken, not waited out
            followers.check()
            assert asyncio.all_tasks() == before
            await asyncio.gather(*(producer.cancel(job) for job in jobs))

    asyncio.run(asyncio.wait_for(follow(), WOKEN_WITHIN_S))


async def until(condition):
    while not (found := condition()):
        await asyncio.sleep(0.005)
    return found


def test_a_client_that_is_closed_sends_its_readers_away(redis_url, real_desk):
    """Whoever still waits is told why nothing comes any more."""
    job = real_desk.submit()

    async def follow():
        before = asyncio.all_tasks()
        producer = AsyncProducer(redis_url, queue="test")
        reading = asyncio.create_task(producer.result(job))
        (followers,) = await until(lambda: list(producer._followers.values()))
        await until(lambda: followers._readers)
        await producer.close()
        with pytest.raises(RedisUnavailable, match="closed"):
            await reading
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(follow(), 60))


def test_a_stream_that_is_none_ends_its_own_readers_wait_alone(redis_url, real_desk):
    """Someone overwrote one job's stream: its reader is told, the other's read goes on without it."""
    broken, sound = real_desk.submit(), real_desk.submit()
    claims = [real_desk.take("a"), real_desk.take("a")]

    async def follow():
        async with AsyncProducer(redis_url, queue="test") as producer:
            streams = [producer.stream(broken), producer.stream(sound)]
            assert [(await anext(stream)).kind for stream in streams] == ["started", "started"]
            waiting = [asyncio.create_task(anext(stream)) for stream in streams]
            real_desk.redis.set(real_desk.keys.tokens(broken), "not a stream")
            real_desk.publish(claims[1], "a", 0, [1])
            assert (await waiting[1]).token_ids == (1,)
            real_desk.publish(claims[1], "a", 1, [2])
            assert (await anext(streams[1])).token_ids == (2,)
            waiting[0].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(asyncio.wait_for(follow(), 60))


@pytest.mark.usefixtures("long_reads")
def test_who_may_not_wake_itself_reads_all_the_same(redis_url, real_desk):
    """A user without rights on wake streams: blocks are short, so who joins is let in without any event of others."""
    waiting, begun = real_desk.submit(lane="low"), real_desk.submit(lane="high")
    rules = ["resetkeys", "~*:job:*", "~*:tokens:*", "~*:result:*", "+@all", "-@dangerous"]
    real_desk.redis.execute_command("ACL", "SETUSER", "reader", "on", ">secret", *rules)
    url = redis_url.replace("redis://", "redis://reader:secret@")

    async def follow():
        async with AsyncProducer(url, queue="test") as producer:
            first = asyncio.create_task(anext(producer.stream(waiting)))
            (followers,) = await until(lambda: list(producer._followers.values()))
            await until(lambda: not followers._wakes and followers._blocked)
            late = asyncio.create_task(anext(producer.stream(begun)))
            await until(lambda: len(followers._readers) == 2)
            real_desk.take("a")
            async with asyncio.timeout(WOKEN_WITHIN_S):
                kind = (await late).kind
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return kind

    try:
        assert asyncio.run(asyncio.wait_for(follow(), 60)) == "started"
    finally:
        real_desk.redis.acl_deluser("reader")


def test_a_reply_from_further_on_than_a_reader_is_not_for_it():
    """A reader went back to the first entry while a read from its old place was under way: that would leave a gap."""
    reader = Followers(None, None, Keys("test")).reader("stream")
    reader._joined = True
    reader.put_in("7-3", [(b"7-4", {})])
    assert (reader.place, reader._inbox) == ("0-0", [])
    reader.put_in("0-0", [(b"7-1", {}), (b"7-3", {})])
    reader.put_in("7-1", [(b"7-3", {}), (b"7-4", {})])
    assert [entry for entry, _ in reader._inbox] == [b"7-1", b"7-3", b"7-4"]
