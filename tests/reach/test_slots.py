"""Every script stays in one slot and touches no key that it does not declare, whatever the partition."""

from pathlib import Path

import pytest
import redis

import producer
from producer import Job, calls
from producer.calls.script import script
from producer.calls.wake import wake
from producer.connection import connect
from producer.keys import Keys, new_job_id
from tests.producer.conftest import Desk
from tests.producer.declared import DeclaredKeys

SCRIPTS = {path.stem for path in (Path(producer.__file__).parent / "scripts").glob("*.lua")} - {"prelude"}


def live_through_everything(desk):
    """What can happen to jobs, so that each script runs at least once, and most with something to do."""
    keys, run = desk.keys, desk.run

    def submit(**fields):
        return desk.submit(id=new_job_id(keys.partition, fields.get("tenant", "default")), **fields)

    run(calls.ensure_group(keys))
    run(calls.heartbeat(keys, "anna", b"", 1.0))
    run(calls.clock(keys))
    run(wake(keys.wake("a-client")))
    run(calls.workers(keys))
    desk.redis.hset(keys.control, mapping={"tenant_window": 2, "tenant_running": 2})
    several = [submit(prompt=str(number), tenant="acme", lane=lane) for number in range(2) for lane in ("high", "low")]
    run(calls.depth(keys))
    assert calls.wait_for_work(desk.redis, keys, 0.01)
    claim = desk.take("anna")
    run(calls.resolve(keys, claim.delivery.job_id, claim.epoch, "anna", b"decided", "model"))
    desk.publish(claim, "anna", 0, [1, 2])
    assert desk.renew("anna", claim) == [True]
    desk.status(claim.delivery.job_id)
    desk.hand_back("anna", claim)
    claim = desk.take("bert")
    claim = desk.take_over("anna")
    run(calls.alone(keys, claim.delivery.job_id, claim.epoch, "anna"))
    run(calls.retry(keys, claim.delivery, "anna", claim.epoch, "it broke", backoff_s=0.0))
    found = run(calls.due(keys, 10, 0))
    for job in {*found.delayed, *several}:
        run(calls.promote(keys, job))
        run(calls.heal(keys, job))
    run(calls.refill(keys, "acme"))
    run(calls.cancel(keys, several[-1]))
    desk.finish(desk.take("anna"), "anna", 0, [3])
    (delivery,) = desk.pull("anna")
    run(calls.discard(keys, delivery, "no job of ours"))
    (letter,) = calls.read_letters(desk.redis.xrange(keys.dead))
    again = letter.job_anew()
    run(calls.enqueue(keys, again))
    assert run(calls.settle(keys, letter, again.id))
    run(calls.tidy(keys, gone_after_s=0.0))


def run_all(client, partition):
    desk = Desk(client, Keys("reach", partition))
    live_through_everything(desk)


@pytest.mark.parametrize("partition", [0, 7, 12345])
def test_each_script_touches_the_keys_it_declares_and_no_other(redis_url, partition):
    """All run as a user who has these keys alone. A script that is not seen here has to be added above."""
    with DeclaredKeys(redis_url) as client:
        run_all(client, partition)
        assert client.refusals() == []
        seen = {name for name in SCRIPTS if script(name).sha in client.seen}
    assert seen == SCRIPTS


def test_a_script_that_reaches_further_is_caught(redis_url):
    """So the test above can fail: a key that is made up in the script, and keys of two slots."""
    with DeclaredKeys(redis_url) as client:
        assert client.eval("return redis.call('GET', KEYS[1])", 1, "{a}:mine") is None
        with pytest.raises(redis.ResponseError):
            client.eval("return redis.call('GET', '{a}:yours')", 1, "{a}:mine")
        client.eval("return redis.pcall('GET', '{a}:theirs').err", 1, "{a}:mine")
        assert client.refusals() == ["key {a}:theirs", "key {a}:yours"]
        with pytest.raises(AssertionError, match="in 2 slots"):
            client.eval("return 1", 2, "{a}:mine", "{b}:mine")


def test_the_same_on_a_cluster(cluster_url):
    """Three nodes, partitions on all of them, one client."""
    with connect(cluster_url) as client:
        for partition in range(6):
            run_all(client, partition)


def test_declared_keys_of_any_job_share_its_partitions_slot():
    """Whatever the queue and the tenant are called, braces aside, which neither may hold."""
    for queue in ("default", "a.b-c_d", "x" * 64):
        keys = Keys(queue, 99)
        job = Job(id=new_job_id(99, "t" * 64), tenant="t" * 64, prompt="a")
        tags = {key[: key.index("}") + 1] for key in (*keys.about(job.id), *keys.lanes, keys.turns, keys.bell)}
        assert tags == {f"{{slip:{queue}:99}}"}
