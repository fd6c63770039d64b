"""Who may work on a job: claim, takeover, renewal, hand-back, and what an owner that was replaced can still do."""

import pytest

from producer import calls, wire
from producer.calls import Held


def test_a_claim_brings_the_job_and_starts_it(desk):
    """The first claim answers the payload, no tokens and delivery 1, and publishes a start."""
    job_id = desk.submit(prompt="count to 3", lane="high")
    claim = desk.take("a")
    assert (claim.status, claim.offset, claim.tokens, claim.deliveries, claim.resolved) == ("ok", 0, [], 1, None)
    assert wire.decode_job(claim.payload, job_id).prompt == "count to 3"
    assert 0 < claim.queued_at_ms <= claim.claimed_at_ms
    (started,) = desk.events(job_id)
    assert (started.kind, started.offset, started.delivery, started.worker) == ("started", 0, 1, "a test")
    assert (desk.status(job_id).state, desk.status(job_id).consumer) == ("running", "a")


def test_only_the_holder_of_the_entry_may_claim(desk):
    """A worker that was not given the entry, or lost it to another, is told so and changes nothing."""
    job_id = desk.submit()
    (delivery,) = desk.pull("a")
    assert desk.claim(delivery, "b").status == "lost"
    desk.reclaim("b")
    assert desk.claim(delivery, "a").status == "lost"
    assert desk.status(job_id).state == "queued"


def test_an_entry_of_an_ended_job_is_removed_by_its_claim(desk):
    """A cancelled job's entry leaves the lane when a worker comes to it."""
    job_id = desk.submit()
    desk.run(calls.cancel(desk.keys, job_id))
    assert desk.take("a").status == "gone"
    assert desk.redis.xlen(desk.keys.lane("normal")) == 0
    assert desk.pending() == 0


def test_an_entry_without_a_job_is_removed_by_its_claim(desk):
    """A lane's entry whose job's hash is gone stops nobody."""
    desk.redis.delete(desk.keys.job(desk.submit()))
    assert desk.take("a").status == "gone"
    assert desk.redis.xlen(desk.keys.lane("normal")) == 0


def test_a_second_entry_of_a_job_is_removed_by_its_claim(desk):
    """Only the entry that the hash names leads to the job; a copy is dropped and the job not started twice."""
    job_id = desk.submit()
    desk.redis.xadd(desk.keys.lane("normal"), {"j": job_id})
    first, copy = desk.pull("a", room=2)
    assert desk.claim(copy, "a").status == "gone"
    assert desk.claim(first, "a").status == "ok"


def test_a_resent_claim_is_one_claim(desk):
    """A claim sent twice has one epoch, one delivery and one start event."""
    job_id = desk.submit()
    (delivery,) = desk.pull("a")
    call = calls.claim(desk.keys, delivery, "a", wire.encode_started("a"))
    first, second = desk.run(call), desk.run(call)
    assert first == second
    assert len(desk.events(job_id)) == 1


def test_a_takeover_goes_on_after_the_published_tokens(desk):
    """The next owner gets a higher epoch and all tokens so far, and the reader sees one stream."""
    job_id = desk.submit()
    first = desk.take("a")
    desk.publish(first, "a", 0, [1, 2, 3])
    desk.publish(first, "a", 3, [4])
    second = desk.take_over("b")
    assert second.epoch > first.epoch
    assert (second.offset, second.deliveries) == (4, 2)
    assert [wire.decode_tokens(blob, 4).token_ids for blob in second.tokens] == [(1, 2, 3), (4,)]
    assert desk.publish(second, "b", 4, [5]).status == "ok"
    assert desk.token_ids(job_id) == [1, 2, 3, 4, 5]
    assert [event.delivery for event in desk.events(job_id) if event.kind == "started"] == [1, 2]


@pytest.mark.parametrize("start", [0, 2, 3, 5, 50])
def test_a_replaced_owner_publishes_nothing(desk, start):
    """Behind the new owner, at its offset or ahead of it: what the old owner sends is refused."""
    job_id = desk.submit()
    old = desk.take("a")
    desk.publish(old, "a", 0, [1, 2])
    new = desk.take_over("b")
    desk.publish(new, "b", 2, [3])
    assert desk.publish(old, "a", start, [66]).status == "fenced"
    assert desk.publish(old, "a", start, []).status == "fenced"
    assert desk.publish(new, "b", 3, [4]).status == "ok"
    assert desk.token_ids(job_id) == [1, 2, 3, 4]


def test_a_replaced_owner_neither_finishes_nor_resolves_nor_renews_nor_hands_back(desk):
    """Each script refuses the old owner, and the new one's work goes on untouched."""
    job_id = desk.submit()
    old = desk.take("a")
    new = desk.take_over("b")
    assert desk.finish(old, "a", 0).status == "fenced"
    assert desk.run(calls.resolve(desk.keys, job_id, old.epoch, "a", b"old", "model")).status == "fenced"
    assert desk.renew("a", old) == [False]
    assert desk.hand_back("a", old) == [False]
    assert desk.renew("b", new) == [True]
    assert desk.finish(new, "b", 0).status == "ok"


def test_the_same_epoch_under_another_name_is_not_the_owner(desk):
    """After a failover lost a claim its number may be given out again; the consumer's name tells the two apart."""
    job_id = desk.submit()
    claim = desk.take("a")
    assert desk.publish(claim, "b", 0, [66]).status == "fenced"
    assert desk.finish(claim, "b", 0).status == "fenced"
    assert desk.run(calls.resolve(desk.keys, job_id, claim.epoch, "b", b"", "model")).status == "fenced"
    assert desk.token_ids(job_id) == []


def test_a_worker_that_reclaims_its_own_job_owns_it_anew(desk):
    """A worker that slept past its lease and takes its own entry again has a new epoch; the old one is refused."""
    desk.submit()
    old = desk.take("a")
    new = desk.take_over("a")
    assert new.epoch > old.epoch
    assert desk.publish(old, "a", 0, [66]).status == "fenced"
    assert desk.publish(new, "a", 0, [1]).status == "ok"


def test_epochs_grow_also_when_the_clock_went_back(desk):
    """An epoch from the future is followed by a greater one."""
    job_id = desk.submit()
    desk.take("a")
    future = 9_000_000_000_000
    desk.redis.hset(desk.keys.job(job_id), "epoch", future)
    assert desk.take_over("b").epoch == future + 1


def test_epochs_grow_past_a_stream_that_is_ahead_of_the_hash(desk):
    """If the events carry a later epoch than the hash, the next claim is above both."""
    job_id = desk.submit()
    desk.take("a")
    desk.redis.xadd(desk.keys.tokens(job_id), {"t": b""}, id="9000000000000-0")
    assert desk.take_over("b").epoch > 9_000_000_000_000


def test_a_renewed_entry_is_not_reclaimed(desk, wait_until):
    """Renewing starts the lease anew: an entry that was idle for longer than a lease is not reclaimable afterwards."""
    desk.submit()
    claim = desk.take("a")
    wait_until(
        lambda: (
            desk.redis.xpending_range(desk.keys.lane("normal"), "workers", "-", "+", 1)[0]["time_since_delivered"] > 50
        ),
        5,
        "the entry has idled",
    )
    assert desk.renew("a", claim) == [True]
    assert desk.reclaim("b", lease_ms=50) == []


def test_a_fresh_entry_is_not_reclaimed(desk):
    """Within its lease an entry stays with its worker."""
    desk.submit()
    desk.take("a")
    assert desk.reclaim("b", lease_ms=60_000) == []


def test_a_reclaim_takes_at_most_what_was_asked_for(desk):
    """Over all lanes together no more than `count` entries change hands."""
    for lane in ("high", "normal", "low"):
        desk.submit(lane=lane)
        desk.submit(lane=lane)
    desk.pull("a", room=6)
    assert len(desk.reclaim("b", count=4)) == 4


def test_reclaiming_goes_on_where_it_stopped(real_desk):
    """A stale entry behind 200 fresh ones is found by following the cursor, though Redis scans few entries a call."""
    for _ in range(201):
        real_desk.submit()
    *fresh, stale = real_desk.pull("a", room=201)
    lane = real_desk.keys.lane("normal")
    real_desk.redis.xclaim(lane, "workers", "a", 0, [stale.entry], idle=120_000, justid=True)
    cursor, found, rounds = calls.ReclaimCursor(), [], 0
    while not found and rounds < 50:
        reclaimed = real_desk.run(calls.reclaim(real_desk.keys, "b", 60_000, cursor, 10))
        cursor, found, rounds = reclaimed.cursor, reclaimed.deliveries, rounds + 1
    assert found == [stale]
    assert rounds > 1
    assert len(fresh) == 200


def test_a_deleted_entry_is_not_reclaimed_for_ever(desk):
    """An entry that someone deleted from a lane while it was pending is forgotten, not delivered."""
    desk.submit()
    (delivery,) = desk.pull("a")
    desk.redis.xdel(desk.keys.lane("normal"), delivery.entry)
    assert desk.reclaim("b") == []
    assert desk.pending() == 0


def test_a_handed_back_job_goes_on_at_once_and_uncounted(desk):
    """Its tokens are kept, the next worker needs no lease to run out, and the delivery does not count."""
    job_id = desk.submit()
    old = desk.take("a")
    desk.publish(old, "a", 0, [1, 2])
    assert desk.hand_back("a", old) == [True]
    status = desk.status(job_id)
    assert (status.state, status.consumer, status.deliveries, status.offset) == ("queued", None, 0, 2)
    new = desk.take("b")
    assert (new.status, new.offset, new.deliveries) == ("ok", 2, 1)
    assert new.epoch > old.epoch


def test_an_owner_that_handed_back_is_no_owner(desk):
    """Between hand-back and the next claim nobody can publish or finish."""
    desk.submit()
    old = desk.take("a")
    desk.hand_back("a", old)
    assert desk.publish(old, "a", 0, [66]).status == "fenced"
    assert desk.finish(old, "a", 0).status == "fenced"


def test_a_resent_hand_back_answers_the_same(desk):
    """Sent twice, a hand-back counts once and both answers say it worked."""
    job_id = desk.submit()
    claim = desk.take("a")
    call = calls.hand_back(desk.keys, "a", [Held(claim.delivery, claim.epoch)])
    assert desk.run(call) == desk.run(call) == [True]
    assert desk.status(job_id).deliveries == 0


def test_a_job_that_needs_another_model_waits_for_it(desk):
    """Handed back for one model, a job is not pulled at once by a worker of another, and is by one of that model."""
    job_id = desk.submit()
    desk.hand_back("a", desk.take("a"), fingerprint="old-model")
    assert desk.pull("b", fingerprint="new-model") == []
    assert desk.pull("c", fingerprint="old-model")[0].job_id == job_id


def test_a_job_that_waits_for_its_model_can_be_reclaimed(desk):
    """Where no worker of that model comes, the lease runs out as ever and any worker finds it."""
    job_id = desk.submit()
    desk.hand_back("a", desk.take("a"), fingerprint="old-model")
    assert desk.reclaim("b", lease_ms=60_000) == []
    assert desk.reclaim("b", lease_ms=0)[0].job_id == job_id


def test_what_the_first_owner_decided_holds_for_all(desk):
    """A later owner of the same model is given the first one's decisions, whatever it would have decided."""
    job_id = desk.submit()
    first = desk.take("a")
    assert desk.run(calls.resolve(desk.keys, job_id, first.epoch, "a", b"seed 1", "model")).blob == b"seed 1"
    assert desk.run(calls.resolve(desk.keys, job_id, first.epoch, "a", b"seed 2", "model")).blob == b"seed 1"
    second = desk.take_over("b")
    assert (second.resolved, second.fingerprint) == (b"seed 1", "model")
    assert desk.run(calls.resolve(desk.keys, job_id, second.epoch, "b", b"seed 3", "model")).blob == b"seed 1"


def test_another_models_tokens_are_not_continued(desk):
    """With tokens published, a worker of another model is told whose they are and changes nothing."""
    job_id = desk.submit()
    first = desk.take("a")
    desk.run(calls.resolve(desk.keys, job_id, first.epoch, "a", b"old", "old-model"))
    desk.publish(first, "a", 0, [1])
    second = desk.take_over("b")
    resolution = desk.run(calls.resolve(desk.keys, job_id, second.epoch, "b", b"new", "new-model"))
    assert (resolution.status, resolution.blob, resolution.fingerprint) == ("mismatch", b"old", "old-model")


def test_another_models_decisions_are_replaced_while_nothing_is_published(desk):
    """Before the first token nobody has seen anything of them, so the new model decides for itself."""
    job_id = desk.submit()
    first = desk.take("a")
    desk.run(calls.resolve(desk.keys, job_id, first.epoch, "a", b"old", "old-model"))
    second = desk.take_over("b")
    assert desk.run(calls.resolve(desk.keys, job_id, second.epoch, "b", b"new", "new-model")).blob == b"new"
    assert desk.take_over("c").fingerprint == "new-model"


def test_an_entry_of_the_same_id_on_another_lane_is_a_copy(desk):
    """Entry ids are unique within a lane only; the hash names lane and entry."""
    job_id = desk.submit(lane="low")
    (delivery,) = desk.pull("a")
    desk.redis.xadd(desk.keys.lane("high"), {"j": job_id}, id=delivery.entry)
    (copy,) = desk.pull("b")
    assert desk.claim(copy, "b").status == "gone"
    assert desk.claim(delivery, "a").status == "ok"
