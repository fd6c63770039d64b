"""`make chaos` in its short form, and its audit, which finds each thing that must not be when it is put before it."""

from __future__ import annotations

import pytest

from ops.chaos.__main__ import SHORT
from ops.chaos.audit import Ask, Cut, Evidence, InRedis, Seen, judge, leftovers
from ops.chaos.monkey import Outage
from ops.chaos.reference import Answer
from ops.chaos.run import Options, run, takeovers
from producer import Producer, calls, wire
from producer.calls import Happening, JobStatus
from producer.keys import Keys
from producer.protocol import Ended, Result, Tokens, running_hash

JOB = "0.default.audited0"
IDS, PIECES = (11, 12, 13, 14), ("on", "e", " t", "wo")
NOW = 1_800_000_000.0


def test_no_mischief_loses_doubles_or_disorders_anything(tmp_path):
    """Three workers, 150 jobs, each kind of mischief at least once: every job has its one right answer."""
    report = run(Options(seed=5, directory=tmp_path / "chaos", **SHORT))
    assert report.verdict.findings == []
    assert report.accepted + len(report.refused) == SHORT["jobs"]
    assert not report.untried


def entry(at: str, **fields: bytes):
    return at.encode(), {name.encode(): blob for name, blob in fields.items()}


def tokens(at: str, first: int, last: int, ids=IDS):
    """Tokens `first` to `last` of a job whose ids are `ids`."""
    return entry(at, t=wire.encode_tokens(ids[first:last], PIECES[first:last], running_hash(0, ids[:last])))


def ended(at: str, reason="stop"):
    return entry(at, e=wire.encode_ended(reason))


START = entry("100-0", s=wire.encode_started("w"), n=b"1")
GOOD = [START, tokens("100-2", 0, 2), entry("200-2", s=wire.encode_started("x"), n=b"2"), tokens("200-4", 2, 4)]


def status_of(state="stop", *history: Happening) -> JobStatus:
    times = dict.fromkeys(("queued_at", "claimed_at", "ended_at", "deadline"), NOW)
    return JobStatus(
        job_id=JOB, state=state, lane="normal", deliveries=2, offset=4, consumer=None, due=None, strikes=0,
        requeued_as=None, history=history, last_event="201-4", **times,
    )  # fmt: skip


def reader(ids=IDS, pieces=PIECES, reason="stop") -> Seen:
    """Who read these tokens in one event, and this end."""
    seen = Seen()
    seen.take(Tokens(offset=len(ids), token_ids=ids, pieces=pieces, hash=running_hash(0, ids)), NOW)
    if reason is not None:
        seen.take(Ended(offset=len(ids), reason=reason), NOW)
    return seen


def audited(entries, *, seen=None, result="as it is", ask=None, status=None, cuts=()):
    """What the audit finds about one job with these entries: the kinds."""
    stored = Result(job_id=JOB, finish_reason="stop", text="".join(PIECES), token_ids=IDS)
    blob = wire.encode_result(stored) if result == "as it is" else result
    evidence = Evidence(
        asked={JOB: ask or Ask(NOW)},
        seen={JOB: seen or reader()},
        found={JOB: InRedis(status_of() if status is None else status, entries, blob)},
        answers={JOB: Answer(IDS, "".join(PIECES), "stop")},
        cuts=cuts,
    )
    return {finding.kind for finding in judge(evidence).findings}


def test_a_job_whose_worker_was_lost_in_mid_sentence_passes():
    """Two starts, one sequence of tokens, one end: nothing is found."""
    assert audited([*GOOD, ended("201-4")]) == set()


WRONG = (*IDS[:3], 99)
DOCTORED = {
    "a gap": ([START, tokens("100-1", 0, 1), tokens("100-4", 2, 4), ended("101-4")], "gap"),
    "a token twice": ([START, tokens("100-2", 0, 2), tokens("200-3", 1, 4), ended("201-4")], "repeat"),
    "two ends": ([*GOOD, ended("201-4"), ended("301-4")], "two_ends"),
    "tokens behind the end": ([*GOOD, ended("201-4"), tokens("300-4", 2, 4)], "repeat"),
    "another token": ([START, tokens("100-4", 0, 4, WRONG), ended("101-4")], "wrong"),
    "a hash of other tokens": (
        [START, entry("100-4", t=wire.encode_tokens(IDS, PIECES, 5)), ended("101-4")],
        "wrong",
    ),
    "an answer cut short": ([START, tokens("100-2", 0, 2), ended("101-2")], "wrong"),
    "no end": (GOOD, "lost"),
    "a dead letter": ([*GOOD, ended("201-4", "dead")], "dead"),
    "a cancel that nobody asked for": ([*GOOD, ended("201-4", "cancelled")], "wrong"),
    "an expiry without a deadline": ([*GOOD, ended("201-4", "expired")], "wrong"),
    "what is no event": ([START, entry("100-1", x=b"?"), *GOOD[1:], ended("201-4")], "wrong"),
}


@pytest.mark.parametrize(("entries", "kind"), DOCTORED.values(), ids=DOCTORED)
def test_a_doctored_stream_is_found(entries, kind):
    """Each way in which a stream can break the promise has its kind of finding."""
    assert kind in audited(entries)


def test_a_reader_who_saw_something_else_is_found():
    """The stream is right, and that is not enough: a reader with fewer tokens, other ones, or no end is named."""
    good = [*GOOD, ended("201-4")]
    assert audited(good, seen=reader(IDS[:3], PIECES[:3])) == {"reader"}
    assert audited(good, seen=reader(WRONG)) == {"reader"}
    assert audited(good, seen=reader(reason=None)) == {"reader"}
    assert audited(good, seen=reader(reason="cancelled")) == {"reader"}


def test_a_reader_notices_a_gap_by_itself():
    """Tokens that do not go on where it is are a finding, whatever it has in the end."""
    seen = Seen()
    seen.take(Tokens(offset=4, token_ids=IDS[2:], pieces=PIECES[2:], hash=running_hash(0, IDS)), NOW)
    assert audited([*GOOD, ended("201-4")], seen=seen) == {"reader"}


def test_a_result_that_is_missing_or_another_is_found():
    """Who only wants the answer gets what the stream says."""
    other = Result(job_id=JOB, finish_reason="stop", text="on", token_ids=IDS[:1])
    assert audited([*GOOD, ended("201-4")], result=wire.encode_result(other)) == {"wrong"}
    assert audited([*GOOD, ended("201-4")], result=None) == {"lost"}


def lost(ask: Ask, seen: Seen, cuts) -> set[str]:
    evidence = Evidence({JOB: ask}, {JOB: seen}, {JOB: InRedis(None, [], None)}, {}, cuts)
    return {finding.kind for finding in judge(evidence).findings}


def test_a_loss_is_allowed_only_within_the_second_that_redis_may_lose_and_only_if_it_is_shown():
    """Accepted earlier, or with a Redis that promises to lose nothing, it is lost; not shown, it is silent."""
    told = Seen(lost="JobUnknown")
    cut = [Cut(NOW - 1, NOW)]
    assert lost(Ask(NOW - 0.5), told, cut) == set()
    assert lost(Ask(NOW - 0.5), Seen(), cut) == {"unshown"}
    assert lost(Ask(NOW - 5), told, cut) == {"lost"}
    assert lost(Ask(NOW - 0.5), told, []) == {"lost"}


def test_a_takeover_by_an_outage_is_found():
    """A lease that ran out while Redis was away, or right after, is one that its worker was kept from renewing."""
    outage = [Outage(NOW, NOW + 60, NOW + 67)]

    def found(at: float):
        line = Happening(at, 3, "the lease of 100 w ran out")
        return [finding.kind for finding in takeovers({JOB: InRedis(status_of("stop", line), [], None)}, outage)]

    assert found(NOW + 61) == ["takeover"]
    assert found(NOW - 1) == found(NOW + 70) == []


def test_what_is_left_on_a_lane_and_what_would_stay_for_ever_is_found(redis_url, redis_client):
    """A job nobody has answered leaves an entry and keys; a job that has ended leaves neither."""
    keys = Keys()
    with Producer(redis_url) as producer:
        job = producer.submit(prompt="one")
        assert {finding.kind for finding in leftovers(redis_client, keys)} == {"pending", "leak"}
        calls.run(redis_client, calls.pull(keys, "w", 1))
        assert "1 entries, 1 pending" in leftovers(redis_client, keys)[0].what
        producer.cancel(job)
        calls.run(redis_client, calls.pull(keys, "w", 1))
    for delivery in calls.run(redis_client, calls.pull(keys, "w", 1, held=[])).deliveries:
        calls.run(redis_client, calls.claim(keys, delivery, "w", b"", reclaimed=False, nonce="n"))
    assert leftovers(redis_client, keys) == []
    redis_client.set(keys.result("stray"), b"")
    assert [finding.kind for finding in leftovers(redis_client, keys)] == ["leak"]


def test_a_dead_letter_is_found(redis_client):
    """At default settings no job may be given up."""
    redis_client.xadd(Keys().dead, {"j": JOB, "r": "strikes"})
    redis_client.expire(Keys().dead, 60)
    assert [finding.kind for finding in leftovers(redis_client, Keys())] == ["dead"]
