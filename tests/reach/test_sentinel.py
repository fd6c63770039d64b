"""A primary with a replica and three Sentinels: whoever holds their URL finds the primary, also when it is another."""

import asyncio

import pytest
import redis

from ops import redis_deployments
from ops import redis_server as redis_servers
from ops.chaos.proxy import Proxy
from producer import AsyncProducer, Job, Producer, RedisUnavailable, calls
from producer.connection import aconnect, connect
from producer.keys import Keys
from tests.producer.conftest import Desk
from tests.reach.conftest import QUEUE, Reader

KEYS = Keys(QUEUE)


@pytest.fixture
def deployment():
    with redis_deployments.start_sentinel() as started:
        yield started


def replicated(server):
    """Everything written so far is on the replica too."""
    with redis.Redis(port=server.port) as primary:
        assert primary.wait(1, 5000) == 1


def test_a_failover_in_mid_sentence(deployment, wait_until):
    """The primary is killed: worker, reader and producers go on at the replica, with the same clients."""
    with connect(deployment.url) as client, Producer(deployment.url, queue=QUEUE) as producer:
        job = producer.submit(prompt="a")
        desk = Desk(client, KEYS)
        claim = desk.take("anna")
        desk.publish(claim, "anna", 0, [10, 11])
        reader = Reader(deployment.url, job)
        wait_until(lambda: reader.token_ids == [10, 11], 20, "the reader is in mid-sentence")
        replicated(deployment.primary)
        deployment.primary.kill9()
        deployment.wait_for_failover()
        assert desk.publish(claim, "anna", 2, [12]).status == "ok"
        desk.finish(claim, "anna", 3, [13])
        assert reader.to_the_end() == [10, 11, 12, 13]
        assert producer.status(producer.submit(prompt="b")).state == "queued"

        async def go():
            async with AsyncProducer(deployment.url, queue=QUEUE) as other:
                return (await other.result(job, timeout=20)).token_ids

        assert asyncio.run(go()) == (13,)


def test_sentinels_may_have_a_login_of_their_own(wait_until):
    """The password of the Sentinels stands in the URL; a wrong one is said to be the Sentinels'."""
    with redis_deployments.start_sentinel(1, sentinel_password="s3cret") as deployment:
        with Producer(deployment.url, queue=QUEUE) as producer:
            assert producer.status(producer.submit(prompt="a")).state == "queued"
        for wrong in (deployment.url.replace("s3cret", "other"), deployment.url.partition("?")[0]):
            with Producer(wrong) as producer, pytest.raises(RedisUnavailable, match="check sentinel_username"):
                producer.submit(prompt="a")

            async def go(wrong=wrong):
                async with AsyncProducer(wrong) as producer:
                    await producer.submit(prompt="a")

            with pytest.raises(RedisUnavailable, match="check sentinel_username"):
                asyncio.run(go())


def test_a_service_that_no_sentinel_knows_is_named(deployment):
    """Neither the servers nor the Sentinels are wrong then."""
    url = deployment.url.replace(f"/{deployment.SERVICE}/", "/other/")
    with Producer(url, timeout_s=2) as producer, pytest.raises(RedisUnavailable, match="No master found for 'other'"):
        producer.submit(prompt="a")


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("client", ["sync", "async"])
def test_a_demoted_primary_counts_as_a_lost_connection(client, many):
    """It lives on as a replica and refuses to write, out of a script too: the call goes to whoever is there now."""
    job = Job(prompt="a")
    run = [calls.enqueue(KEYS, job), calls.status(KEYS, job.id)]
    at_once = {"repl-diskless-sync-delay": "0"}
    with (
        redis_servers.start(config=at_once) as old,
        redis_servers.start(config=at_once) as new,
        Proxy(old.port) as name,
    ):

        def demote():
            with redis.Redis(port=old.port) as connection:
                connection.replicaof("127.0.0.1", new.port)
            name.lead_to(new.port)

        async def go():
            async with aconnect(name.url) as connection:
                assert await calls.arun(connection, run[1]) is None
                demote()
                return await calls.arun_many(connection, run) if many else [await calls.arun(connection, run[0])]

        if client == "async":
            answers = asyncio.run(go())
        else:
            with connect(name.url) as connection:
                assert calls.run(connection, run[1]) is None
                demote()
                answers = calls.run_many(connection, run) if many else [calls.run(connection, run[0])]
        assert not answers[0].duplicate
        with redis.Redis(port=new.port) as connection:
            assert connection.xlen(KEYS.lane("normal")) == 1


def test_a_replica_is_no_place_to_submit_to(wait_until):
    """Where no primary can be found by the URL, it says so."""
    with redis_servers.start() as primary, redis_servers.start() as replica:
        with redis.Redis(port=replica.port) as connection:
            connection.replicaof("127.0.0.1", primary.port)
        with Producer(replica.url) as producer:
            with pytest.raises(RedisUnavailable, match="is a replica, which takes no writes"):
                producer.submit(prompt="a")
            with pytest.raises(RedisUnavailable, match="is a replica, which takes no writes"):
                producer.submit_many([Job(prompt="a")])
