"""Producer and AsyncProducer over a real Redis."""

import asyncio
import queue
import threading
from collections.abc import Callable

import pytest

from producer import (
    AsyncProducer,
    InvalidJob,
    Job,
    JobFailed,
    JobUnknown,
    Producer,
    QueueFull,
    RedisUnavailable,
    ResultExpired,
    ResultTimeout,
    Resync,
    SamplingParams,
    calls,
    follow,
    wire,
)
from producer.cursor import EventCursor
from producer.errors import Undecodable


@pytest.fixture
def producer(redis_url):
    with Producer(redis_url, queue="test") as client:
        yield client


class Reader(threading.Thread):
    """Reads a stream in a thread and hands its events on, so that a test sees each as it comes."""

    def __init__(self, read: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.seen: queue.Queue[object] = queue.Queue()
        self._read = read
        self.start()

    def run(self) -> None:
        try:
            for event in self._read():
                self.seen.put(event)
        except Exception as error:
            self.seen.put(error)

    def next(self):
        return self.seen.get(timeout=20)

    def until_the_end(self):
        events = [self.next()]
        while events[-1].kind != "ended":
            events.append(self.next())
        return events


def token_ids(events):
    return [token for event in events if event.kind == "tokens" for token in event.token_ids]


def test_a_job_goes_in_and_its_tokens_come_out(producer, echo_worker, no_leaked_keys):
    """Submit and stream: a start, the tokens in order with their text, an end."""
    events = list(producer.stream(producer.submit(prompt="one two three")))
    assert [event.kind for event in events] == ["started", "tokens", "tokens", "tokens", "ended"]
    assert "".join(event.text for event in events if event.kind == "tokens") == "one two three "
    assert events[-1].reason == "stop"


def test_a_result_alone(producer, echo_worker, no_leaked_keys):
    """result waits for the end and has the whole answer."""
    result = producer.result(producer.submit(prompt="one two"), timeout=20)
    assert (result.text, result.token_ids, result.finish_reason) == ("one two ", (0, 1), "stop")


def test_a_failed_job_is_a_result_until_one_asks(producer, echo_worker):
    """A bad end is an ordinary result with code and message, and an exception for those who want a good one."""
    result = producer.result(producer.submit(prompt="please fail"), timeout=20)
    assert (result.finish_reason, result.error.code) == ("failed", "asked_to")
    with pytest.raises(JobFailed, match="asked_to"):
        result.raise_for_failure()


def test_many_jobs_in_few_round_trips(producer, echo_worker, no_leaked_keys):
    """submit_many returns the ids in order, and sending the same jobs again changes nothing."""
    jobs = [Job(prompt=f"number {number}") for number in range(30)]
    assert producer.submit_many(jobs) == [job.id for job in jobs] == producer.submit_many(jobs)
    assert [producer.result(job, timeout=20).text for job in jobs] == [f"number {number} " for number in range(30)]


def test_a_queue_that_fills_up_names_what_it_took(producer, real_desk):
    """QueueFull from submit_many carries the accepted ids, and the rest can be sent again later."""
    real_desk.redis.hset(real_desk.keys.control, "max_depth", 2)
    jobs = [Job(prompt=str(number)) for number in range(3)]
    with pytest.raises(QueueFull) as caught:
        producer.submit_many(jobs)
    assert caught.value.accepted == (jobs[0].id, jobs[1].id)
    real_desk.redis.hset(real_desk.keys.control, "max_depth", 3)
    assert producer.submit_many(jobs) == [job.id for job in jobs]


def test_sampling_may_be_said_beside_the_prompt(producer, real_desk):
    """Keyword arguments of submit reach the worker as the job's sampling."""
    producer.submit(prompt="a", temperature=0.5, max_tokens=7, stop=["x"], lane="low")
    claim = real_desk.take("a")
    job = wire.decode_job(claim.payload, claim.delivery.job_id)
    assert job.sampling == SamplingParams(temperature=0.5, max_tokens=7, stop=["x"])
    assert claim.delivery.lane == "low"


@pytest.mark.parametrize("fields", [{"prompt": ""}, {"prompt": "a", "top_p": 2}, {"prompt": "a", "promt": "b"}, {}])
def test_a_bad_job_never_leaves(producer, real_desk, fields):
    """InvalidJob comes from submit itself, and nothing is written."""
    with pytest.raises(InvalidJob):
        producer.submit(**fields)
    assert real_desk.redis.keys("*") == [real_desk.keys.control.encode()]


def test_a_job_and_fields_do_not_mix(producer):
    """submit takes a Job or its fields; sampling= or its values."""
    with pytest.raises(InvalidJob, match="temperature"):
        producer.submit(Job(prompt="a"), temperature=1)
    with pytest.raises(InvalidJob, match="temperature"):
        producer.submit(prompt="a", sampling=SamplingParams(), temperature=1)


@pytest.mark.parametrize("cut", range(8))
def test_a_reader_may_begin_anywhere(producer, real_desk, cut):
    """from_offset cuts inside events, ids and text alike."""
    job = producer.submit(prompt="a")
    claim = real_desk.take("a")
    real_desk.publish(claim, "a", 0, [10, 11, 12])
    real_desk.publish(claim, "a", 3, [13])
    real_desk.finish(claim, "a", 4, [14, 15, 16])
    events = list(producer.stream(job, from_offset=cut))
    assert token_ids(events) == list(range(10, 17))[cut:]
    assert (
        "".join(event.text for event in events if event.kind == "tokens").split()
        == [str(token) for token in range(10, 17)][cut:]
    )


def test_an_end_that_was_written_before_is_not_missed(producer, real_desk):
    """A reader that comes after the end gets everything at once."""
    job = producer.submit(prompt="a")
    real_desk.finish(real_desk.take("a"), "a", 0, [1, 2])
    assert token_ids(producer.stream(job)) == [1, 2]
    assert producer.result(job).finish_reason == "stop"


def test_a_cut_connection_costs_the_reader_nothing(producer, real_desk):
    """All connections are killed twice while a reader waits: it sees every token once, in order."""
    job = producer.submit(prompt="a")
    claim = real_desk.take("a")
    reader = Reader(lambda: producer.stream(job))
    assert reader.next().kind == "started"
    for at in range(0, 6, 2):
        real_desk.redis.client_kill_filter(_type="normal", skipme=True)
        real_desk.publish(claim, "a", at, [at, at + 1])
        assert reader.next().token_ids == (at, at + 1)
    real_desk.redis.client_kill_filter(_type="normal", skipme=True)
    real_desk.finish(claim, "a", 6, [6])
    assert token_ids(reader.until_the_end()) == [6]


def test_a_takeover_is_one_stream_to_its_reader(producer, real_desk):
    """The reader sees a second start in the midst of the tokens, no gap and no repeat."""
    job = producer.submit(prompt="a")
    reader = Reader(lambda: producer.stream(job))
    old = real_desk.take("a")
    real_desk.publish(old, "a", 0, [1, 2])
    new = real_desk.take_over("b")
    real_desk.publish(old, "a", 2, [66])
    real_desk.finish(new, "b", 2, [3])
    events = reader.until_the_end()
    assert [event.kind for event in events] == ["started", "tokens", "started", "tokens", "ended"]
    assert token_ids(events) == [1, 2, 3]


def test_tokens_written_again_after_a_loss_are_shown_once(producer, real_desk):
    """A failover loses the stream's tail, the owner sends it again in other pieces: the reader keeps its place."""
    job = producer.submit(prompt="a")
    claim = real_desk.take("a")
    reader = Reader(lambda: producer.stream(job))
    assert reader.next().kind == "started"
    real_desk.publish(claim, "a", 0, [1, 2])
    replica = {key: real_desk.redis.dump(key) for key in real_desk.redis.keys("*")}
    real_desk.publish(claim, "a", 2, [3])
    assert [reader.next().token_ids, reader.next().token_ids] == [(1, 2), (3,)]
    for key, value in replica.items():
        real_desk.redis.restore(key, 0, value, replace=True)
    assert real_desk.publish(claim, "a", 3, [4, 5]) == calls.PublishReply("gap", 2)
    real_desk.finish(claim, "a", 2, [3, 4, 5])
    assert token_ids(reader.until_the_end()) == [4, 5]


def test_an_end_below_the_readers_place_is_found(producer, real_desk):
    """After a failover the stream may end at lower ids than a reader has seen; it looks again instead of waiting on."""
    job = producer.submit(prompt="a")
    old = real_desk.take("a")
    real_desk.publish(old, "a", 0, [1])
    reader = Reader(lambda: producer.stream(job))
    assert [reader.next().kind, reader.next().kind] == ["started", "tokens"]
    replica = {key: real_desk.redis.dump(key) for key in real_desk.redis.keys("*")}
    new = real_desk.take_over("b")
    real_desk.publish(new, "b", 1, [2])
    assert [reader.next().kind, reader.next().kind] == ["started", "tokens"]
    fail_over(real_desk, replica)
    real_desk.finish(old, "a", 1, [2])
    assert [event.kind for event in reader.until_the_end()] == ["ended"]


def fail_over(desk, replica):
    """What is in Redis is what a replica had, and all connections are new."""
    for key, value in replica.items():
        desk.redis.restore(key, 0, value, replace=True)
    desk.redis.client_kill_filter(_type="normal", skipme=True)


def test_a_reader_is_told_what_a_failover_took_back(producer, real_desk):
    """Another worker goes on from what was left, with other tokens: a Resync, and then these."""
    job = producer.submit(prompt="a")
    old = real_desk.take("a")
    reader = Reader(lambda: producer.stream(job))
    real_desk.publish(old, "a", 0, [1, 2])
    replica = {key: real_desk.redis.dump(key) for key in real_desk.redis.keys("*")}
    real_desk.publish(old, "a", 2, [3, 4])
    seen = [reader.next() for _ in range(3)]
    assert token_ids(seen) == [1, 2, 3, 4]
    fail_over(real_desk, replica)
    real_desk.finish(real_desk.take_over("b"), "b", 2, [3, 9, 8])
    resync, tokens, ended = reader.until_the_end()
    assert resync == Resync(offset=3)
    assert (tokens.token_ids, tokens.text, ended.offset) == ((9, 8), "9 8 ", 5)


def test_a_result_put_together_from_events_honours_a_resync(producer, real_desk):
    """What was taken back is not in the result of a job that nobody stored one for."""
    job = producer.submit(prompt="a")
    old = real_desk.take("a")
    real_desk.publish(old, "a", 0, [1, 2])
    replica = {key: real_desk.redis.dump(key) for key in real_desk.redis.keys("*")}
    real_desk.publish(old, "a", 2, [3, 4])
    cursor = EventCursor()
    events = cursor.events(real_desk.redis.xrange(real_desk.keys.tokens(job)))
    fail_over(real_desk, replica)
    real_desk.publish(real_desk.take_over("b"), "b", 2, [7])
    producer.cancel(job)
    for _ in range(2):  # the end came without tokens, so all is read once more
        events += cursor.events(real_desk.redis.xrange(real_desk.keys.tokens(job), min=f"({cursor.last_entry}"))
    told = follow.told(job, events)
    assert (told.token_ids, told.text, told.finish_reason) == ((1, 2, 7), "1 2 7 ", "cancelled")


def test_missing_tokens_are_an_error_not_a_silence(real_desk):
    """A reader that meets a hole says so instead of going on."""
    job_id = real_desk.submit()
    claim = real_desk.take("a")
    real_desk.publish(claim, "a", 0, [1])
    real_desk.publish(claim, "a", 1, [2])
    real_desk.redis.xdel(real_desk.keys.tokens(job_id), f"{claim.epoch}-1")
    cursor = EventCursor()
    entries = real_desk.redis.xrange(real_desk.keys.tokens(job_id))
    assert token_ids(cursor.events(entries)) == []
    assert cursor.last_entry == "0-0", "it reads the stream once more from the start"
    with pytest.raises(Undecodable, match="from 0 to 1 are missing"):
        cursor.events(entries)


def test_a_cancelled_job_has_a_result(producer, real_desk, no_leaked_keys):
    """Nobody stored one, so the reader puts it together from the tokens there were."""
    job = producer.submit(prompt="a")
    claim = real_desk.take("a")
    real_desk.publish(claim, "a", 0, [1, 2])
    assert producer.cancel(job, "changed my mind").met == "running"
    result = producer.result(job, timeout=20)
    assert (result.finish_reason, result.token_ids, result.text) == ("cancelled", (1, 2), "1 2 ")
    assert result.error.message == "changed my mind"


def test_a_waiting_reader_learns_of_a_cancel(producer, real_desk):
    """Cancelling a queued job ends the stream of whoever follows it."""
    job = producer.submit(prompt="a")
    reader = Reader(lambda: producer.stream(job))
    producer.cancel(job)
    (ended,) = reader.until_the_end()
    assert ended.reason == "cancelled"
    assert producer.status(job).state == "cancelled"


def test_what_nobody_submitted_is_unknown(producer):
    """Every method says so at once, also the waiting ones."""
    unknown = "0.default.nobody-knows"
    for method in (producer.result, producer.status, producer.cancel, lambda job: next(producer.stream(job))):
        with pytest.raises(JobUnknown, match=unknown):
            method(unknown)


def test_what_is_no_id_is_refused(producer):
    """An id of the wrong shape, or of a partition that the queue has not, is an InvalidJob."""
    for wrong in ("my job", "7.default.12345678"):
        with pytest.raises(InvalidJob, match="id"):
            producer.status(wrong)


def test_a_result_kept_no_longer_is_expired(producer, real_desk):
    """A reader that comes too late is told that the job ended, and how."""
    job = producer.submit(prompt="a")
    real_desk.finish(real_desk.take("a"), "a", 0, [1], reason="length")
    real_desk.redis.delete(real_desk.keys.tokens(job), real_desk.keys.result(job))  # as their TTL does
    with pytest.raises(ResultExpired, match="length"):
        producer.result(job)
    with pytest.raises(ResultExpired, match="length"):
        next(producer.stream(job))


def test_waiting_ends_when_the_time_is_over(producer):
    """ResultTimeout leaves the job as it is."""
    job = producer.submit(prompt="a")
    with pytest.raises(ResultTimeout, match=job):
        producer.result(job, timeout=0.05)
    with pytest.raises(ResultTimeout, match=job):
        list(producer.stream(job, timeout=0.05))
    assert producer.status(job).state == "queued"


def test_no_redis_is_one_clear_sentence():
    """Where nothing listens, every method raises RedisUnavailable that says where and what to do."""
    with Producer("redis://127.0.0.1:1/0", timeout_s=1) as producer:
        for act in (
            lambda: producer.submit(prompt="a"),
            lambda: producer.result("0.default.12345678"),
            lambda: next(producer.stream("0.default.12345678")),
            lambda: producer.submit_many([Job(prompt="a")]),
        ):
            with pytest.raises(RedisUnavailable, match=r"no Redis at redis://127.0.0.1:1/0 .*: start it"):
                act()


def test_a_wrong_password_is_named_and_not_repeated(real_desk, redis_url):
    """The message says that the login was refused and hides the password."""
    real_desk.redis.config_set("requirepass", "right")
    try:
        wrong = redis_url.replace("redis://", "redis://default:s3cret@")
        for url in (redis_url, wrong):
            with Producer(url, queue="test") as producer, pytest.raises(RedisUnavailable, match="login") as caught:
                producer.submit(prompt="a")
            assert "s3cret" not in str(caught.value)
    finally:
        real_desk.redis.auth("right")
        real_desk.redis.config_set("requirepass", "")


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "", "redis://localhost:port/0", "redis://localhost/?wings=2"]
)
def test_a_url_that_is_none_is_refused(url):
    """What redis-py cannot read is a RedisUnavailable that shows the right form."""
    with pytest.raises(RedisUnavailable, match="expected a URL like redis://"):
        Producer(url)


def test_several_partitions_are_one_queue(redis_url, real_desk):
    """Jobs spread over the partitions, and any client finds each by its id."""
    with Producer(redis_url, queue="test", partitions=4) as producer:
        jobs = [producer.submit(prompt="a") for _ in range(40)]
        assert {job.partition(".")[0] for job in jobs} == {"0", "1", "2", "3"}
        assert {producer.status(job).state for job in jobs} == {"queued"}


def test_the_async_client_does_all_the_same(redis_url, echo_worker, no_leaked_keys):
    """Submit, stream, result, cancel, status and their errors, awaited."""

    async def story():
        async with AsyncProducer(redis_url, queue="test") as producer:
            job = await producer.submit(prompt="one two three")
            events = [event async for event in producer.stream(job, from_offset=1)]
            assert token_ids(events) == [1, 2]
            assert (await producer.result(job)).text == "one two three "
            assert (await producer.status(job)).state == "stop"
            assert (await producer.cancel(job)).met == "ended"
            many = await producer.submit_many([Job(prompt=str(number)) for number in range(5)])
            results = await asyncio.gather(*(producer.result(job, timeout=20) for job in many))
            assert [result.text for result in results] == [f"{number} " for number in range(5)]
            with pytest.raises(JobUnknown):
                await producer.result("0.default.nobody-knows")
            with pytest.raises(JobUnknown):
                await producer.cancel("0.default.nobody-knows")

    asyncio.run(asyncio.wait_for(story(), 60))


def test_an_async_reader_survives_cut_connections(redis_url, real_desk):
    """As the sync one: killed twice in mid-stream, every token once."""
    job_id = real_desk.submit()
    claim = real_desk.take("a")

    async def story():
        async with AsyncProducer(redis_url, queue="test") as producer:
            seen = []
            async for event in producer.stream(job_id):
                seen.append(event)
                real_desk.redis.client_kill_filter(_type="normal", skipme=True)
                at = event.offset
                if at < 3:
                    real_desk.publish(claim, "a", at, [at])
                elif event.kind == "tokens":
                    real_desk.finish(claim, "a", at)
            return token_ids(seen)

    assert asyncio.run(asyncio.wait_for(story(), 60)) == [0, 1, 2]


def test_an_async_client_without_redis_says_so():
    """RedisUnavailable also from awaited calls."""

    async def story():
        async with AsyncProducer("redis://127.0.0.1:1/0", timeout_s=1) as producer:
            with pytest.raises(RedisUnavailable, match="no Redis"):
                await producer.submit(prompt="a")
            with pytest.raises(RedisUnavailable, match="no Redis"):
                await producer.result("0.default.12345678")

    asyncio.run(asyncio.wait_for(story(), 60))


def test_an_offset_before_the_first_token_is_refused_by_name(redis_url):
    """Following from offset -1 is a mistake of the caller, and says so before Redis is asked."""
    with Producer(redis_url) as producer, pytest.raises(InvalidJob, match="from_offset"):
        next(producer.stream("0.default.abcdefgh12", from_offset=-1))
