"""A network that cuts, delays, and swallows without a word: every connection notices in its time, and comes back."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from ops.chaos.proxy import Proxy
from producer import AsyncProducer, Job, Producer, RedisUnavailable
from producer.connection import RESENDS, connect
from producer.keys import Keys
from tests.producer.conftest import Desk
from tests.reach.conftest import QUEUE, Reader

KEYS = Keys(QUEUE)
TIMEOUT_S = 0.3


@pytest.fixture
def proxy(redis_server, redis_url):
    """A network that a test can disturb, in front of an empty Redis."""
    with Proxy(redis_server.port) as started:
        yield started


@pytest.fixture
def desk(redis_client):
    """A worker that the network's troubles don't reach."""
    return Desk(redis_client, KEYS)


WEATHER = {
    "answers get lost": lambda proxy: proxy.lose_answers(),
    "answers come too late": lambda proxy: proxy.delay(5 * TIMEOUT_S),
    "nothing gets through": lambda proxy: proxy.blackhole(),
    "connections break": lambda proxy: proxy.cut(),
}


@pytest.mark.parametrize("weather", WEATHER)
@pytest.mark.parametrize("client", ["sync", "async"])
def test_a_job_that_is_sent_again_is_one_job(proxy, desk, wait_until, weather, client):
    """The producer does not know whether its first try arrived. It asks again, and the queue holds the job once."""
    job = Job(prompt="a")

    def submit():
        if client == "sync":
            with Producer(proxy.url, queue=QUEUE, timeout_s=TIMEOUT_S) as producer:
                return attempt(lambda: producer.submit(job), proxy)

        async def go():
            async with AsyncProducer(proxy.url, queue=QUEUE, timeout_s=TIMEOUT_S) as producer:
                return await producer.submit(job)

        return attempt(lambda: asyncio.run(go()), proxy)

    WEATHER[weather](proxy)
    with ThreadPoolExecutor() as threads:
        submitted = threads.submit(submit)
        wait_until(lambda: proxy.open_connections or submitted.done(), 20, "the producer has tried")
        if weather == "answers get lost":
            wait_until(lambda: desk.redis.xlen(KEYS.lane("normal")), 20, "the job has arrived")
        proxy.heal()
        assert submitted.result(30) == job.id
    assert desk.redis.xlen(KEYS.lane("normal")) == 1


def attempt(submit, proxy):
    """What a service does with RedisUnavailable: the same job again."""
    while True:
        try:
            return submit()
        except RedisUnavailable:
            proxy.heal()


@pytest.mark.parametrize("client", ["sync", "async"])
def test_a_server_that_never_answers_is_given_up(proxy, wait_until, client):
    """A submit ends after its re-sends, in RedisUnavailable that says what is wrong."""
    proxy.blackhole()

    def submit():
        with Producer(proxy.url, timeout_s=TIMEOUT_S) as producer:
            producer.submit(prompt="a")

    async def asubmit():
        async with AsyncProducer(proxy.url, timeout_s=TIMEOUT_S) as producer:
            await producer.submit(prompt="a")

    with pytest.raises(RedisUnavailable, match="does not answer in time"):
        submit() if client == "sync" else asyncio.run(asubmit())
    wait_until(lambda: proxy.accepted >= 1 + RESENDS, 20, "all tries have arrived")
    assert proxy.accepted == 1 + RESENDS


def test_a_reader_comes_through_all_of_it(proxy, desk, wait_until):
    """Cut, slow, silent, half-open in mid-sentence: the reader has every token once, in order, to the end."""
    job = desk.submit()
    claim = desk.take("anna")
    reader = Reader(proxy.url, job, timeout_s=TIMEOUT_S)
    ids = []

    def publish_more():
        desk.publish(claim, "anna", len(ids), [len(ids)])
        ids.append(len(ids))

    def has_it():
        return reader.token_ids == ids

    publish_more()
    wait_until(has_it, 20, "the reader is in mid-sentence")
    for weather in ("connections break", "answers come too late", "nothing gets through"):
        WEATHER[weather](proxy)
        publish_more()
        if weather == "nothing gets through":
            wait_until(lambda: not has_it(), 1, "a token is lost on the way")
        proxy.heal()
        publish_more()
        wait_until(has_it, 20, f"the reader has come back from: {weather}")
    desk.finish(claim, "anna", len(ids))
    assert reader.to_the_end() == ids


def test_a_connection_that_broke_while_idle_is_noticed_before_it_is_used(proxy, desk):
    """Without a re-send: a pull, which is never sent twice, is not lost on a connection that a router has forgotten."""
    with connect(proxy.url, resends=0) as client:
        client.ping()
        proxy.cut()
        assert client.ping()


def test_what_the_proxy_swallows_stays_swallowed(proxy, redis_server, wait_until):
    """After `heal` a connection that lost something stays half-open; a new one works. So the tests above test that."""
    with (
        redis.Redis(port=proxy.port, socket_timeout=20, single_connection_client=True) as old,
        redis.Redis(port=redis_server.port) as direct,
    ):
        assert old.ping()
        proxy.lose_answers()
        old.connection.send_command("SET", "arrived", 1)
        wait_until(lambda: direct.get("arrived") == b"1", 20, "it has arrived")
        assert not old.connection.can_read(timeout=TIMEOUT_S)
        proxy.heal()
        old.connection.send_command("PING")
        assert not old.connection.can_read(timeout=TIMEOUT_S)
    with redis.Redis(port=proxy.port) as new:
        assert new.ping()
