"""Putting back what no worker would find, and forgetting what is gone."""

from producer import calls


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


def test_consumers_that_are_gone_are_forgotten_unless_they_hold_something(desk):
    """With entries they would be lost with them; whoever beats is not gone."""
    for name in ("idle", "busy", "alive"):
        desk.submit()
        claim = desk.take(name)
        if name != "busy":
            desk.finish(claim, name, 0)
    desk.run(calls.heartbeat(desk.keys, "alive", b"", 60))
    assert desk.run(calls.tidy(desk.keys, gone_after_s=-1)) == 1
    names = {known["name"] for known in desk.redis.xinfo_consumers(desk.keys.lane("normal"), "workers")}
    assert names == {b"busy", b"alive"}
