"""The users of ops/redis on a real server with its redis.conf: each can do its work, and nothing else."""

import asyncio
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from ops import redis_server as redis_servers
from ops.redis import users
from producer import AsyncProducer, Job, Producer, RedisUnavailable, calls
from producer.cli import main
from producer.connection import connect
from producer.dead_letters import DeadLetters
from producer.keys import Keys, new_job_id
from tests.producer.conftest import Desk
from tests.worker.process import WorkerProcess
from worker.housekeeping import Housekeeping

FOLDER = Path(users.__file__).parent
KEYS = Keys("default")
ROLES = list(users.ROLES)


class Server:
    """A server with the four users, and urls for them."""

    def __init__(self, version, folder):
        self.version, self.acl = version, folder / "users.acl"
        tenants = [
            users.line("reader", "acme-reader", "acme-reader", tenant="acme", server=version),
            users.line("producer", "acme-producer", "acme-producer", tenant="acme", server=version),
        ]
        tenants.append("user tester on >tester ~* +@all")  # who empties it between tests
        own = (FOLDER / "users.acl").read_text() if version == 6 else users.users(version, "*")
        self.acl.write_text(own + "\n".join(tenants) + "\n")
        conf = (FOLDER / "redis.conf").read_text() + f"aclfile {self.acl}\n"
        self.redis = redis_servers.launch({}, conf=conf, login=("operator", "operator"))

    def url(self, name):
        return self.redis.url.replace("redis://", f"redis://{name}:{name}@")

    def raw(self, name):
        return redis.Redis(port=self.redis.port, username=name, password=name)

    def refused(self, name):
        """What a user tried and may not, but for redis-py's greeting, to which it wants no answer."""
        with self.raw("tester") as tester:
            log = [entry["object"] for entry in tester.acl_log(count=100) if entry["username"] == name]
        return set(log) - {"client", "client|setinfo"}


@pytest.fixture
def server(module_server):
    with module_server.raw("tester") as tester:
        tester.flushall()
        tester.acl_log_reset()
    return module_server


@pytest.fixture(scope="module", params=[6, 7], ids=["users for 6.2", "users for 7"])
def module_server(request, tmp_path_factory):
    found = redis_servers.find()
    if int(found.version.split(".")[0]) < request.param:
        pytest.skip(f"{found} has no key patterns that only read")
    started = Server(request.param, tmp_path_factory.mktemp("acl"))
    with started.redis:
        yield started


@pytest.fixture
def desk(server):
    """What workers do, as the worker's user."""
    with connect(server.url("worker")) as client:
        yield Desk(client, KEYS)


def answer_one(desk):
    claim = desk.take("anna")
    desk.publish(claim, "anna", 0, [10, 11])
    desk.finish(claim, "anna", 2, [12])


def test_the_file_is_what_the_program_prints():
    """`python -m ops.redis.users > ops/redis/users.acl`, after each change of a script or a role."""
    assert (FOLDER / "users.acl").read_text() == users.users(6, "*")


def test_a_roles_commands_are_those_of_its_scripts():
    """Also those in functions of the prelude that a script calls, and in what these call."""
    assert users.called_by("status") == {"hmget", "xrevrange"}
    assert {"xinfo|groups", "xgroup|create", "xclaim", "time"} <= users.called_by("pull")
    assert "+xclaim" not in users.line("producer", "a", "b").split()


@pytest.mark.parametrize("name", ["producer", "acme-producer"])
def test_a_producer_submits_streams_and_cancels(server, desk, name):
    """All that the client can do, one by one, in batches, and with asyncio."""
    tenant = "acme"

    async def go(job):
        async with AsyncProducer(server.url(name)) as producer:
            last = [event async for event in producer.stream(job)][-1]
            return last.kind, (await producer.result(job)).token_ids, await producer.submit(prompt="c", tenant=tenant)

    with Producer(server.url(name)) as producer:
        job = producer.submit(prompt="a", tenant=tenant)
        answer_one(desk)
        assert producer.result(job, timeout=20).ok
        assert list(producer.stream(job))[-1].kind == "ended"
        (second,) = producer.submit_many([Job(prompt="b", tenant=tenant)])
        kind, token_ids, third = asyncio.run(go(job))
        assert (kind, token_ids) == ("ended", (12,))
        for queued in (second, third):
            assert producer.cancel(queued).met == "queued"
            assert producer.status(queued).state == "cancelled"
    assert server.refused(name) == set()


def test_a_worker_serves_a_job_to_its_end(server, tmp_path):
    """The real one, on the demo model, as the worker's user; nothing is refused to it on the way."""
    worker = WorkerProcess(server.url("worker"), tmp_path / "worker.log", "--max-rows", "2")
    try:
        worker.wait_ready()
        with Producer(server.url("producer")) as producer:
            assert producer.result(producer.submit(prompt="spell orange", max_tokens=20), timeout=60).ok
        assert server.refused("worker") == set()
        assert "forbids" not in worker.log
        assert "NOPERM" not in worker.log
    finally:
        worker.end()


def test_a_worker_may_do_all_that_can_happen_to_a_job(server, desk):
    """Renewed, handed back, reclaimed, retried, promoted, discarded, swept up after: each script runs as its user."""
    with Producer(server.url("producer")) as producer:
        for number in range(3):
            producer.submit(id=new_job_id(), prompt=str(number))
        claim = desk.take("anna")
        assert desk.renew("anna", claim) == [True]
        assert desk.hand_back("anna", claim) == [True]
        claim = desk.take("bert")
        claim = desk.take_over("anna")
        desk.run(calls.retry(KEYS, claim.delivery, "anna", claim.epoch, "it broke", backoff_s=0.0))
        Housekeeping(desk.redis, KEYS).sweep()
        desk.run(calls.heartbeat(KEYS, "anna", b"", 1))
        assert calls.wait_for_work(desk.redis, KEYS, 0.01)
        desk.run(calls.discard(KEYS, desk.pull("anna")[0], "no job of ours"))
        for delivery in desk.pull("anna", room=9):
            desk.finish(desk.claim(delivery, "anna"), "anna", 0)


def forbidden(do):
    with pytest.raises(RedisUnavailable, match="forbids this to its user"):
        do()


def test_a_reader_wakes_itself_where_it_may(server, desk, wait_until):
    """From Redis 7 on a selector lets it write to wakes alone. On 6.2 it looks again and again; both get all."""

    async def go():
        async with AsyncProducer(server.url("reader")) as reader:
            first = asyncio.ensure_future(reader.result(jobs[0], timeout=20))
            await asyncio.to_thread(wait_until, lambda: tester.info("clients")["blocked_clients"], 20, "it waits")
            second = asyncio.ensure_future(reader.result(jobs[1], timeout=20))
            for _ in jobs:
                await asyncio.to_thread(answer_one, desk)
            return (await first).ok, (await second).ok

    with Producer(server.url("producer")) as producer:
        jobs = [producer.submit(prompt="a") for _ in range(2)]
    with server.raw("tester") as tester:
        assert asyncio.run(go()) == (True, True)
    assert any(":wake:" in tried for tried in server.refused("reader")) == (server.version == 6)


@pytest.mark.parametrize("name", ["reader", "acme-reader"])
def test_a_reader_reads_and_changes_nothing(server, desk, name):
    """It follows jobs and looks at them; it can't submit, cancel, take one, or write to any key."""
    with Producer(server.url("producer")) as producer:
        job = producer.submit(prompt="a", tenant="acme")
        answer_one(desk)
    with Producer(server.url(name)) as reader, server.raw(name) as raw:
        assert reader.status(job).state == "stop"
        assert reader.result(job).ok
        assert [event.kind for event in reader.stream(job)] == ["started", "tokens", "tokens", "ended"]
        forbidden(lambda: reader.submit(prompt="b", tenant="acme"))
        forbidden(lambda: reader.submit_many([Job(prompt="b", tenant="acme")]))
        forbidden(lambda: reader.cancel(job))
        for words in (
            ("SET", KEYS.result(job), "forged"),
            ("XADD", KEYS.tokens(job), "*", "t", "forged"),
            ("HSET", KEYS.job(job), "state", "failed"),
            ("DEL", KEYS.tokens(job)),
            ("EVAL", "return redis.call('DEL', KEYS[1])", 1, KEYS.tokens(job)),
            ("XREAD", "STREAMS", KEYS.lane("normal"), "0"),
        ):
            with pytest.raises(redis.ResponseError):
                raw.execute_command(*words)

    async def go():
        async with AsyncProducer(server.url(name)) as areader:
            assert (await areader.status(job)).state == "stop"
            return [event.kind async for event in areader.stream(job)][-1]

    assert asyncio.run(go()) == "ended"


def test_a_tenants_reader_sees_no_other_tenants_jobs(server, desk):
    """Neither their events nor their results nor their state, whatever their ids look like."""
    with Producer(server.url("producer")) as producer, Producer(server.url("acme-reader")) as reader:
        for tenant in ("other", "acme2", "not-acme", "_acme_"):
            job = producer.submit(prompt="a", tenant=tenant)
            answer_one(desk)
            forbidden(lambda job=job: reader.status(job))
            forbidden(lambda job=job: reader.result(job))
            forbidden(lambda job=job: list(reader.stream(job)))
            with server.raw("acme-reader") as raw:
                for words in (
                    ("XREAD", "STREAMS", KEYS.tokens(job), "0"),
                    ("GET", KEYS.result(job)),
                    ("HMGET", KEYS.job(job), "payload"),
                    ("EVAL", "return redis.call('GET', ARGV[1])", 0, KEYS.result(job)),
                ):
                    with pytest.raises(redis.ResponseError):
                        raw.execute_command(*words)


def test_a_tenants_producer_submits_for_no_other(server):
    """Its jobs bear its name, since their keys do."""
    with Producer(server.url("acme-producer")) as producer:
        producer.cancel(producer.submit(prompt="a", tenant="acme"))
        forbidden(lambda: producer.submit(prompt="a", tenant="other"))


@pytest.mark.parametrize("name", [*ROLES, "acme-reader"])
def test_nobody_may_empty_or_stop_the_server(server, name):
    """Nor change it, nor list all keys, nor make users; also not from a script."""
    with server.raw(name) as raw:
        raw.ping()
        for words in (
            ("FLUSHALL",),
            ("FLUSHDB",),
            ("SHUTDOWN", "NOSAVE"),
            ("CONFIG", "SET", "maxmemory", "1"),
            ("DEBUG", "SLEEP", "0"),
            ("KEYS", "*"),
            ("ACL", "SETUSER", name, "+@all"),
            ("SCRIPT", "FLUSH"),
            ("REPLICAOF", "NO", "ONE"),
            ("SET", "elsewhere", "1"),
            ("EVAL", "return redis.call('FLUSHALL')", 0),
        ):
            with pytest.raises(redis.ResponseError):
                raw.execute_command(*words)


def test_who_has_no_login_gets_nothing(server):
    """There is no default user, and no name goes without its password."""
    with Producer(server.redis.url) as producer, pytest.raises(RedisUnavailable, match="login"):
        producer.submit(prompt="a")
    wrong = server.url("producer").replace("producer@", "guess@")
    with Producer(wrong) as producer, pytest.raises(RedisUnavailable, match="refuses the login"):
        producer.submit(prompt="a")


def test_an_operator_looks_at_everything_and_moves_jobs(server, desk):
    """Depth, workers, memory; limits; dead letters requeued and purged; cancel. It can't take a job."""
    url = server.url("operator")
    with Producer(server.url("producer")) as producer, connect(url) as client:
        jobs = [producer.submit(prompt=str(number)) for number in range(2)]
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        operator = Desk(client, KEYS)
        assert operator.run(calls.depth(KEYS))["normal"].waiting == 2
        assert operator.run(calls.workers(KEYS)) == {}
        for change in ("paused=1", "paused="):
            assert CliRunner().invoke(main, ["control", change, "--redis", url]).exit_code == 0
        for delivery in desk.pull("anna", room=2):
            desk.run(calls.discard(KEYS, delivery, "no job of ours"))
        with DeadLetters(url) as letters:
            assert {letter.job_id for letter in letters.find(newer_than_s=3600)} == set(jobs)
            assert letters.purge(letters.get(jobs[0]))
            again = letters.requeue(letters.get(jobs[1]))
        with Producer(url) as canceller:
            assert canceller.cancel(again).met == "queued"
        with pytest.raises(redis.ResponseError):
            operator.pull("me")
