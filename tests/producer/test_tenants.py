"""Tenants share the lanes: each has a line of its own, limits, and a turn."""

import pytest

from producer import calls
from producer.errors import QueueFull
from producer.protocol import Job
from tests.producer.conftest import Desk


@pytest.fixture
def desk(desk):
    """A partition where two of a tenant's jobs may stand on the lanes."""
    return Desk(desk.redis, desk.keys, window=2)


def ready(desk, tenant):
    return desk.redis.hlen(desk.keys.about(f"0.{tenant}.aaaaaaaa")[7])


def take(desk, consumer="a"):
    """The tenant and claim of the next job."""
    claim = desk.take(consumer)
    return claim.delivery.job_id.split(".")[1], claim


def test_who_comes_later_waits_behind_a_bounded_number(desk):
    """With a hundred jobs of one tenant before it, another's first job is third, and then they take turns."""
    for _ in range(100):
        desk.submit(tenant="big")
    for _ in range(3):
        desk.submit(tenant="small")
    order = [take(desk)[0] for _ in range(8)]
    assert order[:2] == ["big", "big"]
    assert order.count("small") == 3
    assert max(at for at, tenant in enumerate(order) if tenant == "small") <= 7


def test_lines_and_lanes_together_are_the_depth(desk):
    """Jobs in a tenant's line are counted as waiting, and against the queue's limit."""
    desk.redis.hset(desk.keys.control, "max_depth", 5)
    for _ in range(5):
        desk.submit(tenant="big")
    assert desk.run(calls.depth(desk.keys))["normal"] == calls.LaneDepth(waiting=5, running=0)
    with pytest.raises(QueueFull) as refused:
        desk.submit(tenant="small")
    assert (refused.value.what, refused.value.depth, refused.value.limit) == ("depth", 5, 5)


def test_no_more_than_a_tenants_limit_runs(desk):
    """A third job of a tenant that may run two waits until one ends, then follows at once."""
    desk.redis.hset(desk.keys.control, "big:running", 2)
    for _ in range(3):
        desk.submit(tenant="big")
    (_, first), (_, second) = take(desk), take(desk)
    assert desk.pull("a", room=5) == []
    desk.finish(first, "a", 0)
    assert take(desk)[1].status == "ok"
    assert desk.pull("a", room=5) == []
    assert desk.renew("a", second) == [True]


def test_a_limit_that_is_raised_is_felt(desk):
    """Housekeeping lets those in line have their turn, without another job coming or ending."""
    desk.redis.hset(desk.keys.control, "tenant_running", 0)
    desk.submit(tenant="big")
    assert desk.pull("a") == []
    desk.redis.hdel(desk.keys.control, "tenant_running")
    assert desk.run(calls.due(desk.keys, 10, 0)).tenants == ["big"]
    desk.run(calls.refill(desk.keys, "big"))
    assert take(desk)[0] == "big"


def test_a_tenant_with_too_much_in_line_is_refused_and_no_other(desk):
    """QueueFull says that it is the tenant's own limit."""
    desk.redis.hset(desk.keys.control, "big:queued", 3)
    for _ in range(3):
        desk.submit(tenant="big")
    with pytest.raises(QueueFull, match="3 waiting jobs of the tenant, limit 3"):
        desk.submit(tenant="big")
    desk.submit(tenant="small")


@pytest.mark.parametrize("end", ["cancel", "finish", "hand back"])
def test_whoever_steps_out_lets_the_next_in(desk, end):
    """However a job leaves the lane, exactly one of its tenant's follows, and the sets stay true."""
    first, *_ = [desk.submit(tenant="big") for _ in range(6)]
    if end == "cancel":
        desk.run(calls.cancel(desk.keys, first))
        assert ready(desk, "big") == 2
    else:
        claim = desk.take("a")
        assert ready(desk, "big") == 2, "the claimed one made room"
        desk.finish(claim, "a", 0) if end == "finish" else desk.hand_back("a", claim)
        assert ready(desk, "big") == 2
    everything = [take(desk)[0] for _ in range(6 if end == "hand back" else 5)]
    assert everything == ["big"] * len(everything)
    assert desk.redis.hgetall(desk.keys.counts).get(b"big") is None


def test_an_urgent_job_passes_its_tenants_others(desk):
    """In a tenant's own line the high lane stands before what came a little earlier on a lower one."""
    for _ in range(4):
        desk.submit(tenant="big", lane="low")
    urgent = desk.submit(tenant="big", lane="high")
    desk.take("a")  # makes room for one of the line
    lane = desk.redis.xrange(desk.keys.lane("high"))
    assert [fields[b"j"].decode() for _, fields in lane] == [urgent]


def test_a_cancelled_job_leaves_its_line(desk):
    """It takes no turn, and is counted no more."""
    ids = [desk.submit(tenant="big") for _ in range(4)]
    desk.run(calls.cancel(desk.keys, ids[3]))
    assert [take(desk)[1].delivery.job_id for _ in range(3)] == ids[:3]
    assert desk.pull("a") == []


def test_jobs_of_one_moment_keep_their_order(desk):
    """A tenant's line is first come, first served, also within a millisecond."""
    jobs = [Job(prompt="x", tenant="big") for _ in range(50)]
    calls.run_many(desk.redis, [calls.enqueue(desk.keys, job) for job in jobs])
    assert [take(desk)[1].delivery.job_id for _ in jobs] == [job.id for job in jobs]
