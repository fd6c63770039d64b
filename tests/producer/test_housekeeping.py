"""Putting back what no worker would find, and forgetting what is gone."""

import pytest

from producer import calls
from producer.protocol import Job


def heal(desk, job_id):
    return desk.run(calls.heal(desk.keys, job_id))


def test_a_job_in_its_place_is_left_alone(desk):
    """Queued, handed back, delayed or running: healing changes nothing."""
    waiting, running = desk.submit(), desk.submit()
    assert heal(desk, waiting) == "ok"
    claim = desk.take("a")
    assert heal(desk, claim.delivery.job_id) == "ok"
    desk.hand_back("a", claim)
    assert heal(desk, waiting) == heal(desk, running) == "ok"
    assert desk.redis.xlen(desk.keys.lane("normal")) == 2


def test_a_lane_that_was_deleted_is_filled_again(desk):
    """Every job that stood on it gets a new entry, once."""
    ids = [desk.submit() for _ in range(3)]
    handed_back = desk.take("a")
    desk.hand_back("a", handed_back)
    desk.redis.delete(desk.keys.lane("normal"))
    assert [heal(desk, job_id) for job_id in ids] == ["healed"] * 3
    assert [heal(desk, job_id) for job_id in ids] == ["ok"] * 3
    assert sorted(desk.take("b").delivery.job_id for _ in ids) == sorted(ids)


def test_a_group_that_skipped_jobs_loses_none(desk):
    """Someone made the group anew at the lane's end: what lies behind is neither pending nor ahead, and comes again."""
    job_id = desk.submit()
    lane = desk.keys.lane("normal")
    desk.redis.xgroup_create(lane, "workers", id="$")
    assert desk.pull("a") == []
    assert heal(desk, job_id) == "healed"
    assert desk.take("a").delivery.job_id == job_id


def test_a_running_job_without_entry_is_its_living_workers(desk):
    """As long as its owner's heart beats nobody else is given it; then it is."""
    desk.submit()
    claim = desk.take("a")
    desk.run(calls.heartbeat(desk.keys, "a", b"", 60))
    desk.redis.delete(desk.keys.lane("normal"))
    assert heal(desk, claim.delivery.job_id) == "ok"
    desk.redis.delete(desk.keys.workers)
    assert heal(desk, claim.delivery.job_id) == "healed"
    assert desk.take("b").status == "ok"
    assert desk.publish(claim, "a", 0, [1]).status == "fenced"


def test_a_job_whose_hash_vanished_is_counted_no_more(desk):
    """Its place in every set is given up."""
    job_id = desk.submit()
    desk.redis.delete(desk.keys.job(job_id))
    assert heal(desk, job_id) == "gone"
    assert not desk.redis.exists(desk.keys.deadlines)
    (delivery,) = desk.pull("a")
    assert desk.claim(delivery, "a").status == "gone"


@pytest.mark.parametrize("met_before_by", [calls.expire, calls.cancel, calls.promote])
def test_a_job_whose_hash_vanished_gives_up_its_tenants_place(desk, met_before_by):
    """Whoever met it before: the tenant's next has its turn, and neither events nor counts stay for ever."""
    desk.redis.hset(desk.keys.control, "tenant_running", 1)
    lost, following = desk.submit(), desk.submit()
    desk.take("a")
    desk.redis.delete(desk.keys.job(lost))
    desk.run(met_before_by(desk.keys, lost))
    assert lost in desk.run(calls.due(desk.keys, 10, 0)).some
    heal(desk, lost)
    claim = desk.take("b")
    assert claim.delivery.job_id == following
    desk.finish(claim, "b", 0)
    assert 0 < desk.redis.ttl(desk.keys.tokens(lost)) <= 3600
    assert 0 < desk.redis.ttl(desk.keys.counts) <= 3600
    assert not desk.redis.hexists(desk.keys.counts, "/bytes")


def test_counts_expire_where_the_last_job_vanished(desk):
    """An emptied queue keeps nothing for ever, also where its last job had no end."""
    lost = desk.submit()
    desk.redis.delete(desk.keys.job(lost))
    heal(desk, lost)
    assert 0 < desk.redis.ttl(desk.keys.counts) <= 3600


def test_a_job_that_is_in_its_line_twice_is_counted_once(desk):
    """Its hash vanished, and its producer sends it again, before housekeeping has noticed."""
    desk.redis.hset(desk.keys.control, "tenant_running", 0)
    job = Job(prompt="x")
    for _ in range(2):
        desk.run(calls.enqueue(desk.keys, job))
        desk.redis.delete(desk.keys.job(job.id))
    assert desk.run(calls.depth(desk.keys))["normal"].waiting == 1


def test_consumers_that_are_gone_are_forgotten_unless_they_hold_something(desk):
    """With entries they would be lost with them; one that comes again is known again."""
    for name in ("idle", "busy"):
        desk.submit()
        claim = desk.take(name)
        if name != "busy":
            desk.finish(claim, name, 0)
    assert desk.run(calls.tidy(desk.keys, gone_after_s=-1)) == 1
    names = {known["name"] for known in desk.redis.xinfo_consumers(desk.keys.lane("normal"), "workers")}
    assert names == {b"busy"}
    desk.submit()
    assert desk.take("idle").status == "ok"
