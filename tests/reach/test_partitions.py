"""One worker, several partitions: all are waited on, pulled from in turn, renewed, reclaimed and handed back."""

from collections import Counter
from multiprocessing.connection import wait

import pytest
import redis

from ops import redis_deployments
from ops.chaos.proxy import Proxy
from producer import Job, Producer, calls
from producer.connection import connect, connect_to_block
from producer.keys import Keys, new_job_id
from tests.producer.conftest import Desk
from tests.reach.conftest import PARTITIONS, QUEUE, Reader
from tests.worker.conftest import RedisHalf
from tests.worker.process import DEMO_MODEL, WorkerProcess
from worker.doorbell import BLOCK_S, Doorbell
from worker.partitions import Partitions
from worker.text import TextModel


@pytest.fixture(scope="module")
def text():
    return TextModel.from_pretrained(str(DEMO_MODEL))


@pytest.fixture
def half(redis_url, text):
    """`half(name)` is the Redis half of a worker that serves three partitions."""

    class Half(RedisHalf):
        PARTITIONS = Partitions("test", range(3))

    return lambda name: Half(redis_url, name, text)


@pytest.fixture
def desks(redis_client):
    return [Desk(redis_client, Keys("test", partition)) for partition in range(3)]


def submit(desk, **fields):
    return desk.submit(id=new_job_id(desk.keys.partition), **{"prompt": "Count from 1 to 9", **fields})


def partitions_of(jobs):
    return Counter(int(job.job_id.split(".")[0]) for job in jobs)


def test_each_partition_has_its_turn(half, desks):
    """With one row free at a time, who is asked first changes each time: none waits for another's end."""
    for desk in desks:
        for _ in range(4):
            submit(desk)
    anna = half("anna")
    taken = [job for _ in range(6) for job in anna.take(room=1)]
    assert partitions_of(taken) == {0: 2, 1: 2, 2: 2}


def test_room_that_one_partition_leaves_another_fills(half, desks):
    """What is free is filled from wherever there is something."""
    for _ in range(5):
        submit(desks[1])
    submit(desks[2])
    assert partitions_of(half("anna").take(room=6)) == {1: 5, 2: 1}


def test_what_is_done_to_a_batch_is_done_in_each_partition(half, desks, text):
    """Published, renewed, finished: jobs of all partitions at once, each call in one of them."""
    for desk in desks:
        submit(desk)
    anna = half("anna")
    jobs = anna.take()
    ids = text.encode_prompt("1 2 3")
    for job in jobs:
        anna.emit(job, ids)
    anna.outbox.flush()
    for job in jobs:
        assert desks[job.delivery.partition].token_ids(job.job_id) == job.token_ids
        anna.emit(job, ids, "stop")
    anna.outbox.flush()
    assert anna.outbox.is_empty
    assert [desk.pending() for desk in desks] == [0, 0, 0]


def test_jobs_of_a_lost_worker_are_found_in_every_partition(half, desks):
    """Each partition has a cursor of its own, and the search ends when all have been looked through."""
    for desk in desks:
        for _ in range(3):
            submit(desk)
    half("anna").take(room=9)
    ben = half("ben")
    assert not ben.inbox.reclaim(0, 4)
    assert partitions_of(ben.admit() + ben.take_over()) == {0: 3, 1: 3, 2: 3}


def test_a_lost_answer_is_made_good_in_the_partition_that_lost_it(half, desks):
    """The pull of one took its job without our hearing of it; the next pull brings it, and the others' too."""
    anna = half("anna")
    for desk in desks:
        submit(desk)
    send, answers = anna.redis.execute_command, iter([0, 1])

    def lose_the_second(*args, **options):
        anna.redis.answers_to_lose = next(answers, 0)
        return send(*args, **options)

    anna.redis.execute_command = lose_the_second
    with pytest.raises(redis.ConnectionError):
        anna.take()
    del anna.redis.execute_command
    assert partitions_of(anna.take()) == {0: 1, 1: 1, 2: 1}


def test_an_entry_with_an_id_of_another_partition_is_settled_where_it_lies(half, desks):
    """Whoever put it there was mistaken. It is taken away from that lane, and the partition it names is untouched."""
    job = submit(desks[2])
    desks[0].redis.xadd(desks[0].keys.lane("high"), {"j": job})
    anna = half("anna")
    assert [taken.job_id for taken in anna.take()] == [job]
    assert (desks[0].pending(), desks[2].pending()) == (0, 1)
    assert desks[0].redis.xlen(desks[0].keys.lane("high")) == 0


def test_the_bell_rings_for_any_partition(redis_url, desks):
    """Each has a blocking read of its own."""
    bell = Doorbell(lambda: connect_to_block(redis_url), Partitions("test", range(3)), "a-model")
    for desk in desks:
        bell.listen()
        assert not wait([bell], 0.05)
        submit(desk)
        assert wait([bell], 20)
        bell.answer()
        for delivery in desk.pull("anna"):
            desk.finish(desk.claim(delivery, "anna"), "anna", 0)
    bell.close()


def test_the_bell_rings_again_after_a_network_that_went_silent(redis_server, redis_url, desks, wait_until):
    """Its connection is half-open and it can't know. It notices in its time, and listens over a new one."""
    with Proxy(redis_server.port) as proxy:
        own = lambda: connect_to_block(proxy.url, timeout_s=0.3, block_s=BLOCK_S)  # noqa: E731
        bell = Doorbell(own, [desks[0].keys], "a-model")
        bell.listen()
        wait_until(lambda: desks[0].redis.info("clients")["blocked_clients"], 20, "it waits")
        proxy.blackhole()
        submit(desks[0])
        assert not wait([bell], 0.1)
        proxy.heal()
        assert wait([bell], 20)
        bell.close()


def test_a_worker_on_a_cluster_serves_all_partitions(cluster_url, tmp_path, wait_until):
    """The real one: jobs of each partition are answered, and those it can't end are handed back when it stops."""
    flags = ("--queue", QUEUE, "--partitions", str(PARTITIONS), "--max-rows", "16", "--drain-grace-s", "0")
    spell = {"messages": [{"role": "user", "content": "spell orange"}], "sampling": {"temperature": 0.0}}
    count = {"prompt": "Count from 1 to 100", "sampling": {"max_tokens": 900, "ignore_eos": True}}
    short, endless = ([Job(id=new_job_id(at), **job) for at in range(PARTITIONS)] for job in (spell, count))
    worker = WorkerProcess(cluster_url, tmp_path / "worker.log", *flags)
    with Producer(cluster_url, queue=QUEUE, partitions=PARTITIONS) as producer, connect(cluster_url) as client:
        try:
            producer.submit_many(short)
            worker.wait_ready()
            assert {producer.result(job, timeout=60).text for job in short} == {"o-r-a-n-g-e"}
            with worker.slow():
                producer.submit_many(endless)
                wait_until(
                    lambda: all(producer.status(job).offset > 5 for job in endless), 60, "one runs in each partition"
                )
                for partition in range(PARTITIONS):
                    assert list(calls.run(client, calls.workers(Keys(QUEUE, partition)))) == [worker.name]
                assert worker.stop() == 0
            assert {producer.status(job).state for job in endless} == {"queued"}
            assert sum(line["jobs"] for line in worker.said("handed_back")) == PARTITIONS
        finally:
            worker.end()


def test_a_worker_goes_on_after_a_failover(tmp_path, wait_until):
    """The real one on Sentinels: the primary is killed in mid-sentence, the reader sees nothing of it."""
    with redis_deployments.start_sentinel() as deployment, Producer(deployment.url, queue=QUEUE) as producer:
        worker = WorkerProcess(deployment.url, tmp_path / "worker.log", "--queue", QUEUE, "--max-rows", "2")
        try:
            worker.wait_ready()
            with worker.slow():
                job = producer.submit(prompt="Count from 1 to 100", max_tokens=900, ignore_eos=True)
                reader = Reader(deployment.url, job)
                wait_until(lambda: len(reader.token_ids) > 5, 60, "the job is in mid-sentence")
                deployment.primary.kill9()
            deployment.wait_for_failover()
            assert len(reader.to_the_end()) == 900
            assert producer.status(job).deliveries == 1
            worker.wait_for("redis_back")
        finally:
            worker.end()
