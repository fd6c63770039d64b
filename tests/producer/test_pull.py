"""Taking entries off the lanes: how many, whose first, and that no lane starves."""

from collections import Counter

import pytest

from producer import calls
from producer.calls import Held
from producer.protocol import Job


def test_a_pull_takes_at_most_the_room_there_is(desk):
    """Entries beyond the room stay for others, in order of arrival."""
    ids = [desk.submit() for _ in range(5)]
    assert [delivery.job_id for delivery in desk.pull("a", room=3)] == ids[:3]
    assert [delivery.job_id for delivery in desk.pull("b", room=3)] == ids[3:]
    assert desk.pull("c", room=3) == []


def test_a_pull_without_room_takes_nothing(desk):
    """Room 0 leaves everything where it is."""
    desk.submit()
    assert desk.pull("a", room=0) == []
    assert desk.run(calls.depth(desk.keys))["normal"].waiting == 1


@pytest.mark.parametrize("room", [1, 5, 120])
def test_lanes_share_by_weight(desk, room):
    """With all lanes full, 120 turns go 80 : 30 : 10, however few entries each pull takes."""
    for lane in ("high", "normal", "low"):
        calls.run_many(desk.redis, [calls.enqueue(desk.keys, job(lane)) for _ in range(120)])
    turns = Counter()
    while turns.total() < 120:
        turns.update(delivery.lane for delivery in desk.pull("a", room=min(room, 120 - turns.total()), ageing_ms=10**9))
    assert turns == {"high": 80, "normal": 30, "low": 10}


def test_no_lane_waits_longer_than_its_turns(desk):
    """Under an endless stream of high jobs, each twelfth turn at the latest goes to the low lane."""
    calls.run_many(desk.redis, [calls.enqueue(desk.keys, job("low")) for _ in range(5)])
    calls.run_many(desk.redis, [calls.enqueue(desk.keys, job("high")) for _ in range(100)])
    lanes = [desk.pull("a", ageing_ms=10**9)[0].lane for _ in range(60)]
    at = [turn for turn, lane in enumerate(lanes) if lane == "low"]
    assert len(at) == 5
    assert max(later - earlier for earlier, later in zip([-1, *at], at, strict=False)) <= 12


def test_an_empty_lane_leaves_its_turns_to_the_others(desk):
    """Where only low jobs wait, only low jobs are taken, at full speed."""
    ids = [desk.submit(lane="low") for _ in range(4)]
    assert [delivery.job_id for delivery in desk.pull("a", room=4)] == ids


def test_a_lane_that_waited_long_gains_weight(desk):
    """A low lane whose head waited past the limit of ageing gets eight turns of sixteen instead of one of nine."""
    for number in range(20):
        desk.redis.xadd(desk.keys.lane("low"), {"j": f"0.default.waiting-{number}"}, id=f"{1000 + number}-0")
    calls.run_many(desk.redis, [calls.enqueue(desk.keys, job("high")) for _ in range(20)])
    turns = Counter(delivery.lane for delivery in desk.pull("a", room=16, ageing_ms=60_000))
    assert turns == {"high": 8, "low": 8}


def test_a_lost_reply_is_made_good_by_the_next_pull(desk):
    """Entries a worker was given without its hearing of it come first when it says what it holds."""
    ids = [desk.submit() for _ in range(3)]
    (known,) = desk.pull("a")
    desk.pull("a")  # the reply is lost
    again = desk.pull("a", room=2, held=[known])
    assert [delivery.job_id for delivery in again] == ids[1:]
    assert desk.pull("a", held=[known, *again]) == []


def test_a_lost_reply_concerns_no_other_worker(desk):
    """Looking for one's own entries does not touch what others hold."""
    desk.submit()
    desk.pull("a")
    assert desk.pull("b", held=[]) == []


def test_what_was_handed_back_is_pulled_before_what_waits(desk):
    """A handed-back job of the low lane goes before fresh jobs of the high one."""
    job_id = desk.submit(lane="low")
    desk.hand_back("a", desk.take("a"))
    desk.submit(lane="high")
    assert desk.pull("b")[0].job_id == job_id


def test_a_foreign_entry_is_removed_and_reported(desk):
    """An entry without a job id stops nobody: it is named in the answer and gone from the lane."""
    entry = desk.redis.xadd(desk.keys.lane("normal"), {"something": "else"})
    job_id = desk.submit()
    pulled = desk.run(calls.pull(desk.keys, "a", 2))
    assert [delivery.job_id for delivery in pulled.deliveries] == [job_id]
    assert pulled.foreign == [f"normal {entry.decode()}"]
    assert desk.redis.xlen(desk.keys.lane("normal")) == 1
    assert desk.pending() == 1


def test_a_job_id_that_is_no_text_is_foreign(desk):
    """Bytes that are no UTF-8 in an entry's id field are reported, not raised."""
    desk.redis.xadd(desk.keys.lane("normal"), {"j": b"\xff\xfe"})
    assert desk.run(calls.pull(desk.keys, "a", 1)).foreign


def test_a_lost_group_is_made_again_and_loses_no_job(desk):
    """After the group of a lane was destroyed, waiting and running jobs are all delivered again."""
    ids = {desk.submit() for _ in range(3)}
    claim = desk.take("a")
    desk.redis.xgroup_destroy(desk.keys.lane("normal"), "workers")
    assert desk.renew("a", claim) == [False]
    deliveries = desk.pull("b", room=5)
    assert {delivery.job_id for delivery in deliveries} == ids
    taken = {delivery.job_id: desk.claim(delivery, "b") for delivery in deliveries}
    assert taken[claim.delivery.job_id].epoch > claim.epoch


def test_deleted_lanes_are_made_again(desk):
    """With the lanes gone altogether, pull and reclaim answer that there is nothing, and new jobs are found."""
    desk.run(calls.ensure_group(desk.keys))
    desk.redis.delete(*desk.keys.lanes)
    assert desk.pull("a") == []
    assert desk.reclaim("a") == []
    job_id = desk.submit()
    assert desk.pull("a")[0].job_id == job_id


def test_groups_exist_before_any_worker(desk):
    """ensure_group may run any number of times and leaves three lanes with an empty group."""
    desk.run(calls.ensure_group(desk.keys))
    desk.run(calls.ensure_group(desk.keys))
    assert [desk.redis.xpending(lane, "workers")["pending"] for lane in desk.keys.lanes] == [0, 0, 0]


def test_unclaimed_deliveries_can_be_renewed_and_handed_back(desk):
    """What was pulled as look-ahead and never claimed keeps its lease, and goes back as it was."""
    job_id = desk.submit()
    (delivery,) = desk.pull("a")
    assert desk.run(calls.renew(desk.keys, "a", [Held(delivery, None)])) == [True]
    assert desk.run(calls.renew(desk.keys, "b", [Held(delivery, None)])) == [False]
    assert desk.run(calls.hand_back(desk.keys, "a", [Held(delivery, None)])) == [True]
    assert desk.pull("b")[0].job_id == job_id
    assert desk.status(job_id).deliveries == 0


def job(lane):
    return Job(prompt="hello", lane=lane)
