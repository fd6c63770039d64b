"""A queue on a real cluster of three nodes: partitions on slots of their own, and slots that move."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.crc import key_slot

from ops import redis_deployments
from producer import AsyncProducer, Job, Producer, RedisUnavailable, calls
from producer.connection import aconnect, connect, connect_to_block
from producer.keys import Keys, new_job_id
from tests.producer.conftest import Desk
from tests.reach.conftest import PARTITIONS, QUEUE, Reader


def slot_of(keys: Keys) -> int:
    return key_slot(keys.control.encode())


def other_node(cluster, slot):
    home = cluster.node_of(slot)
    return next(node for node in cluster.nodes if node is not home)


@pytest.fixture
def moving(cluster, cluster_desks):
    """A partition, its slot, and a node to move that to; the slot goes home again after the test."""
    desk = cluster_desks[0]
    slot = slot_of(desk.keys)
    home, away = cluster.node_of(slot), other_node(cluster, slot)
    yield desk, slot, away
    if cluster.node_of(slot) is away:
        cluster.start_moving(slot, home)
    cluster.move_keys(slot, home)
    cluster.finish_moving(slot, home)


def move(cluster, slot, to):
    cluster.start_moving(slot, to)
    cluster.move_keys(slot, to)
    cluster.finish_moving(slot, to)


def jobs(count, partition=None):
    numbers = [number % PARTITIONS if partition is None else partition for number in range(count)]
    return [Job(id=new_job_id(at), prompt=f"job {number}") for number, at in enumerate(numbers)]


def test_the_partitions_of_a_queue_are_spread_over_the_nodes(cluster):
    """Each has its own slot, and more than one node has some."""
    slots = {slot_of(Keys(QUEUE, partition)) for partition in range(PARTITIONS)}
    assert len(slots) == PARTITIONS
    assert len({cluster.node_of(slot).port for slot in slots}) > 1


def test_jobs_on_all_partitions_are_submitted_followed_and_answered(cluster_url, echo_workers):
    """One batch goes to all nodes, streams and results come back from each; a second time changes nothing."""
    echo_workers(cluster_url)
    batch = jobs(2 * PARTITIONS)
    with Producer(cluster_url, queue=QUEUE, partitions=PARTITIONS) as producer:
        assert producer.submit_many(batch) == [job.id for job in batch] == producer.submit_many(batch)
        for job in batch:
            assert producer.result(job, timeout=20).text == f"{job.prompt} "
            assert "".join(getattr(event, "text", "") for event in producer.stream(job)) == f"{job.prompt} "
            assert producer.status(job).state == "stop"
        drawn = {producer.submit(prompt="anywhere").split(".")[0] for _ in range(40)}
    assert len(drawn) > 1


def test_asyncio_reaches_all_partitions_too(cluster_url, echo_workers):
    """AsyncProducer does the same over connections of its own."""
    echo_workers(cluster_url)
    batch = jobs(2 * PARTITIONS)

    async def go():
        async with AsyncProducer(cluster_url, queue=QUEUE, partitions=PARTITIONS) as producer:
            assert await producer.submit_many(batch) == [job.id for job in batch]
            results = await asyncio.gather(*(producer.result(job, timeout=20) for job in batch))
            streamed = [event async for event in producer.stream(batch[-1])]
            return [result.text for result in results], streamed[-1].kind, await producer.cancel(batch[0])

    texts, last, cancelled = asyncio.run(go())
    assert texts == [f"{job.prompt} " for job in batch]
    assert (last, cancelled.met) == ("ended", "ended")


def test_scripts_that_a_node_has_forgotten_are_sent_again(cluster, cluster_desks):
    """NOSCRIPT comes from each node by itself, amid a batch that goes to all; its text is sent once to a partition."""
    batch = [calls.enqueue(cluster_desks[job.partition].keys, job) for job in jobs(6 * PARTITIONS)]
    home = cluster.node_of(slot_of(cluster_desks[0].keys))
    here = [desk for desk in cluster_desks if cluster.node_of(slot_of(desk.keys)) is home]
    with redis.Redis(port=home.port) as node:
        assert all(not answer.duplicate for answer in calls.run_many(cluster_desks[0].redis, batch))
        node.script_flush()
        node.config_resetstat()
        assert all(answer.duplicate for answer in calls.run_many(cluster_desks[0].redis, batch))
        assert node.info("commandstats")["cmdstat_eval"]["calls"] == len(here)


def test_a_slot_that_has_moved_is_found(cluster, moving):
    """MOVED: the client follows, single calls and batches alike, and the next ones go straight there."""
    desk, slot, away = moving
    first = desk.submit()
    move(cluster, slot, away)
    assert desk.status(first).state == "queued"
    batch = jobs(4, partition=0)
    answers = calls.run_many(desk.redis, [calls.enqueue(desk.keys, job) for job in batch])
    assert [answer.job_id for answer in answers] == [job.id for job in batch]
    with redis.Redis(port=away.port) as node:
        before = node.info("stats")["total_error_replies"]
        calls.run_many(desk.redis, [calls.status(desk.keys, job.id) for job in batch])
        assert node.info("stats")["total_error_replies"] == before
        assert node.xlen(desk.keys.lane("normal")) == 5


def test_a_batch_meets_a_slot_that_has_moved_just_now(cluster, moving, cluster_desks):
    """Of one batch some answers come at once and some by way of MOVED; each is given in its place."""
    desk, slot, away = moving
    batch = jobs(2 * PARTITIONS)
    run = [calls.enqueue(cluster_desks[job.partition].keys, job) for job in batch]
    calls.run_many(desk.redis, run[:PARTITIONS])
    move(cluster, slot, away)
    assert [a.duplicate for a in calls.run_many(desk.redis, run)] == [True] * PARTITIONS + [False] * PARTITIONS


@pytest.mark.parametrize("client", ["sync", "async"])
def test_keys_that_are_on_their_way_are_asked_for_where_they_are(cluster, moving, client):
    """While a slot moves, keys that have gone are found by ASK, by single calls and batches alike."""
    desk, slot, away = moving
    for job in jobs(4, partition=0):
        calls.run(desk.redis, calls.enqueue(desk.keys, job))
    claims = [desk.claim(delivery, "anna") for delivery in desk.pull("anna", room=4)]
    look = [calls.status(desk.keys, claim.delivery.job_id) for claim in claims]
    cluster.start_moving(slot, away)
    cluster.move_keys(slot, away)
    if client == "sync":
        assert [found.state for found in calls.run_many(desk.redis, look)] == ["running"] * 4
        assert calls.run(desk.redis, look[0]).state == "running"
        assert desk.redis.get(desk.keys.result(claims[0].delivery.job_id)) is None
    else:

        async def go():
            async with aconnect(cluster.url) as other:
                assert [found.state for found in await calls.arun_many(other, look)] == ["running"] * 4
                assert (await calls.arun(other, look[0])).state == "running"

        asyncio.run(go())


def test_a_call_waits_for_a_slot_that_is_half_way(cluster, moving, wait_until):
    """TRYAGAIN: of a script's keys some have gone and some not; it is tried until they are together."""
    desk, slot, away = moving
    job = desk.submit()
    cluster.start_moving(slot, away)
    with redis.Redis(port=cluster.node_of(slot).port) as source, redis.Redis(port=away.port) as target:
        source.config_resetstat()
        target.config_resetstat()
        source.execute_command("MIGRATE", "127.0.0.1", away.port, "", 0, 5000, "KEYS", desk.keys.job(job))
        with ThreadPoolExecutor() as threads:
            pulled = threads.submit(desk.pull, "anna")
            # Redis 6.2 says it where the keys are going, later ones where they were.
            both = (source, target)
            wait_until(lambda: any("errorstat_TRYAGAIN" in n.info("errorstats") for n in both), 20, "it was told so")
            cluster.move_keys(slot, away)
            cluster.finish_moving(slot, away)
            (delivery,) = pulled.result(20)
    assert delivery.job_id == job


def test_a_blocking_read_survives_the_move_of_its_slot(cluster, moving, wait_until):
    """The reader waits on the node that had the slot; Redis wakes it with MOVED, and it goes on at the new one."""
    desk, slot, away = moving
    job = desk.submit()
    claim = desk.claim(*desk.pull("anna"), "anna")
    desk.publish(claim, "anna", 0, [10, 11])
    reader = Reader(cluster.url, job, partitions=PARTITIONS)
    wait_until(lambda: reader.token_ids == [10, 11], 20, "the reader has what there is, and waits")
    move(cluster, slot, away)
    desk.publish(claim, "anna", 2, [12])
    desk.finish(claim, "anna", 3, [13])
    assert reader.to_the_end() == [10, 11, 12, 13]


def test_a_blocking_read_is_not_sent_again(cluster, cluster_url, wait_until):
    """Where its connection is lost the reader is told, since it has to look around first."""
    keys = Keys(QUEUE)
    with (
        connect_to_block(cluster_url) as client,
        redis.Redis(port=cluster.node_of(slot_of(keys)).port) as admin,
        ThreadPoolExecutor() as threads,
    ):
        reading = threads.submit(client.xread, {keys.bell: "0"}, block=5000)
        wait_until(lambda: admin.info("clients")["blocked_clients"] == 1, 20, "it waits")
        admin.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(redis.ConnectionError):
            reading.result(20)
        assert admin.info("clients")["blocked_clients"] == 0


def test_a_client_begins_with_any_node_that_answers(cluster, cluster_url):
    """Of the hosts in the URL some may be gone."""
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[2].port}"
    with Producer(url, queue=QUEUE, partitions=PARTITIONS) as producer:
        assert producer.status(producer.submit(prompt="hello")).state == "queued"


def test_one_server_is_no_cluster_and_a_node_no_server(redis_url, cluster):
    """The wrong scheme is named, with the right one."""
    no_cluster = redis_url.replace("redis://", "redis+cluster://")
    with Producer(no_cluster) as producer, pytest.raises(RedisUnavailable, match=r"is no cluster .*redis://"):
        producer.submit(prompt="a")
    first, second, _ = cluster.nodes
    partition = next(n for n in range(50) if cluster.node_of(slot_of(Keys(QUEUE, n))) is second)
    job, says = Job(id=new_job_id(partition), prompt="a"), r"node of a cluster: .*redis\+cluster://"
    with Producer(first.url, queue=QUEUE, partitions=50) as producer, pytest.raises(RedisUnavailable, match=says):
        producer.submit(job)


def test_commands_without_a_key_or_in_a_transaction_are_refused(cluster_url):
    """What a cluster can't route is an error that says so, not an answer from whichever node."""
    with connect(cluster_url) as client:
        with pytest.raises(redis.DataError, match="FLUSHALL: expected a key"):
            client.flushall()
        with pytest.raises(redis.DataError, match="transaction=False"):
            client.pipeline()


def test_a_replica_that_takes_over_is_found(wait_until):
    """A primary is killed in mid-sentence. The reader goes on at the replica, and so does the worker."""
    with redis_deployments.start_cluster(replicas=1) as deployment:
        home = deployment.nodes[0]
        keys = next(k for k in (Keys(QUEUE, n) for n in range(50)) if deployment.node_of(slot_of(k)) is home)
        with connect(deployment.url) as client:
            job = Job(id=new_job_id(keys.partition), prompt="a")
            calls.run(client, calls.enqueue(keys, job))
            desk = Desk(client, keys)
            claim = desk.take("anna")
            desk.publish(claim, "anna", 0, [10, 11])
            reader = Reader(deployment.url, job.id, partitions=50)
            wait_until(lambda: reader.token_ids == [10, 11], 20, "the reader is in mid-sentence")
            with redis.Redis(port=home.port) as primary:
                assert primary.wait(1, 5000) == 1
            home.kill9()

            def publish():
                try:
                    return desk.publish(claim, "anna", 2, [12]).status in ("ok", "already")
                except redis.RedisError:
                    return False

            wait_until(publish, 30, "the worker has published to the new primary")
            desk.finish(claim, "anna", 3, [13])
            assert reader.to_the_end() == [10, 11, 12, 13]
