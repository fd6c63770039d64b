"""Strikes, retries and dead letters: a job that workers are lost over is stopped, and nobody else is."""

import json

import pytest
from click.testing import CliRunner

from producer import calls, wire
from producer.cli import main
from producer.dead_letters import DeadLetters
from producer.protocol import Failure, Job, Result
from tests.producer.conftest import STARTED


def lose(desk, claim, consumer, to):
    """The lease of `consumer` runs out, and `to` takes over."""
    (delivery,) = desk.reclaim(to)
    return desk.run(calls.claim(desk.keys, delivery, to, STARTED, reclaimed=True))


def retry(desk, claim, consumer, error="the engine died"):
    return desk.run(calls.retry(desk.keys, claim.delivery, consumer, claim.epoch, error))


def bury(desk, claim, consumer, why="strikes"):
    """End a claimed job as dead."""
    failure = Failure(code=why, message="workers were lost")
    result = Result(job_id=claim.delivery.job_id, finish_reason="dead", text="", token_ids=(), error=failure)
    return desk.run(
        calls.finish(
            desk.keys,
            claim.delivery,
            consumer,
            claim.epoch,
            start=claim.offset,
            ended=wire.encode_ended("dead", failure),
            result=wire.encode_result(result),
            reason="dead",
            why=why,
        )
    )


def test_a_lost_worker_is_a_strike_only_if_nothing_was_added(desk):
    """Tokens since the claim are proof that the job can do without killing anyone."""
    desk.submit()
    first = desk.take("a")
    second = lose(desk, first, "a", "b")
    assert second.strikes == 1
    desk.publish(second, "b", 0, [1])
    assert lose(desk, second, "b", "c").strikes == 1


def test_a_second_strike_needs_the_job_to_have_run_alone(desk):
    """A neighbour that was lost with the killer again and again is blamed once at most."""
    desk.submit()
    claim = lose(desk, desk.take("a"), "a", "b")
    for consumer, following in zip("bcd", "cde", strict=True):
        claim = lose(desk, claim, consumer, following)
        assert claim.strikes == 1
    assert desk.run(calls.alone(desk.keys, claim.delivery.job_id, claim.epoch, "e"))
    assert lose(desk, claim, "e", "f").strikes == 2


def test_a_hand_back_and_a_lost_group_are_nobodys_fault(desk):
    """Neither counts a strike, though nothing was added."""
    desk.submit()
    desk.hand_back("a", desk.take("a"))
    claim = desk.take("b")
    assert (claim.strikes, claim.deliveries) == (0, 1)
    desk.redis.xgroup_destroy(desk.keys.lane("normal"), "workers")
    assert desk.take("c").strikes == 0


def test_only_the_owner_says_that_a_job_runs_alone(desk):
    """A zombie's word is not taken."""
    desk.submit()
    claim = desk.take("a")
    lose(desk, claim, "a", "b")
    assert not desk.run(calls.alone(desk.keys, claim.delivery.job_id, claim.epoch, "a"))


def test_a_failed_machine_gives_its_jobs_back(desk):
    """What got on is free at once; what may be to blame backs off, twice as long each time, with its history."""
    desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1])
    assert retry(desk, claim, "a") == calls.Retried("queued", 0)
    assert retry(desk, claim, "a") == calls.Retried("queued", 0), "a re-sent one gets the same answer"
    again = desk.take("b")
    assert again.offset == 1
    assert retry(desk, again, "b", "two\nlines") == calls.Retried("delayed", 1)
    assert retry(desk, again, "b") == calls.Retried("delayed", 1)
    status = desk.status(again.delivery.job_id)
    assert (status.state, status.strikes, desk.pull("c")) == ("delayed", 1, [])
    assert status.due is not None
    assert [line.what.split(" gave it up: ")[-1] for line in status.history if "gave" in line.what] == [
        "the engine died",
        "two lines",
    ]


def test_each_strike_doubles_the_pause(desk):
    """From a second on, give or take half."""
    job_id = desk.submit()
    for strikes in (1, 2, 3):
        claim = desk.take("a")
        desk.run(calls.alone(desk.keys, job_id, claim.epoch, "a"))
        before = desk.run(calls.clock(desk.keys))
        assert retry(desk, claim, "a") == calls.Retried("delayed", strikes)
        pause = desk.status(job_id).due - before
        least = 0.5 * 2 ** (strikes - 1)
        assert least <= pause + 0.001
        assert pause <= 3 * least + desk.run(calls.clock(desk.keys)) - before
        desk.redis.hset(desk.keys.job(job_id), "due", 1)
        assert desk.run(calls.promote(desk.keys, job_id)) == "ok"


def test_a_job_whose_lane_was_deleted_can_be_given_up(desk):
    """There is no entry to hand over: it waits for housekeeping to put it back, and nothing fails."""
    desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1])
    desk.redis.delete(desk.keys.lane("normal"))
    assert retry(desk, claim, "a") == calls.Retried("queued", 0)
    assert desk.run(calls.heal(desk.keys, claim.delivery.job_id)) == "healed"
    assert desk.take("b").offset == 1


def test_who_lost_a_job_cannot_give_it_up(desk):
    """A late retry of an earlier owner changes nothing."""
    desk.submit()
    first = desk.take("a")
    second = lose(desk, first, "a", "b")
    assert retry(desk, first, "a").status == "fenced"
    assert desk.renew("b", second) == [True]


def test_a_dead_job_tells_its_reader_and_leaves_a_letter(desk):
    """The end event says `dead` and why; the letter has payload and history; the lane is empty."""
    job_id = desk.submit(prompt="poison")
    claim = lose(desk, desk.take("a"), "a", "b")
    assert bury(desk, claim, "b").status == "ok"
    ended = desk.events(job_id)[-1]
    assert (ended.kind, ended.reason, ended.error.code) == ("ended", "dead", "strikes")
    (letter,) = calls.read_letters(desk.redis.xrange(desk.keys.dead))
    assert (letter.job_id, letter.why) == (job_id, "strikes")
    assert wire.decode_job(letter.payload, job_id).prompt == "poison"
    assert any(line.what.startswith("strike: the lease of") for line in letter.history)
    assert desk.redis.ttl(desk.keys.dead) > 0


def test_a_letters_job_anew_is_another_job_and_always_the_same(desk):
    """A fresh id that follows from the old one, no deadline, and the name of the old."""
    job = Job(prompt="x", tenant="t", deadline=8e9, idempotency_key="k")
    letter = calls.DeadLetter("1-0", job.id, "strikes", wire.encode_job(job), ())
    anew = letter.job_anew()
    assert anew == letter.job_anew()
    assert (anew.deadline, anew.requeued_from, anew.tenant) == (None, job.id, "t")
    assert anew.id != job.id
    again = calls.DeadLetter("1-0", anew.id, "strikes", wire.encode_job(anew), ()).job_anew()
    assert again.id not in (anew.id, job.id)


def test_what_lies_at_a_jobs_keys_and_is_none_of_ours_becomes_a_letter(desk):
    """A string where the events should be: the claim says so, and the job ends with a reason."""
    job_id = desk.submit()
    desk.redis.set(desk.keys.tokens(job_id), "not a stream")
    (delivery,) = desk.pull("a")
    claim = desk.claim(delivery, "a")
    assert (claim.status, claim.why) == ("broken", "its events are no stream")
    desk.run(calls.discard(desk.keys, delivery, claim.why))
    assert desk.events(job_id)[-1].reason == "dead"
    assert desk.status(job_id).state == "dead"
    assert desk.run(calls.depth(desk.keys))["normal"] == calls.LaneDepth(0, 0)


def test_a_job_whose_hash_is_none_is_cleared_away(desk):
    """Nothing is left of it but the letter, one of them."""
    job_id = desk.submit()
    desk.redis.set(desk.keys.job(job_id), "not a hash")
    (delivery,) = desk.pull("a")
    assert desk.claim(delivery, "a").status == "broken"
    for _ in range(2):  # the first answer was lost
        desk.run(calls.discard(desk.keys, delivery, "no hash"))
    (letter,) = calls.read_letters(desk.redis.xrange(desk.keys.dead))
    assert (letter.job_id, letter.why) == (job_id, "broken")
    assert not desk.redis.exists(desk.keys.job(job_id), desk.keys.tokens(job_id), desk.keys.deadlines)


@pytest.fixture
def slipstream(real_desk, redis_url):
    """`slipstream("dead", ...)` on a queue with two dead letters: their ids, and how to run a command."""

    def run(*arguments):
        environment = {"SLIPSTREAM_REDIS": redis_url, "SLIPSTREAM_QUEUE": "test"}
        return CliRunner(env=environment).invoke(main, arguments)

    ids = []
    for why in ("strikes", "deliveries"):
        ids.append(real_desk.submit(prompt=f"died of {why}"))
        bury(real_desk, real_desk.take("a"), "a", why)
    return ids, run


def test_letters_are_listed_and_shown(slipstream):
    """By error and by age; one is shown whole."""
    (first, second), run = slipstream
    assert [line.split()[0] for line in run("dead", "list").stdout.splitlines()] == [first, second]
    assert run("dead", "list", "--error", "deliveries").stdout.split()[0] == second
    assert run("dead", "list", "--older-than", "1h").stdout == ""
    assert len(run("dead", "list", "--newer-than", "1h").stdout.splitlines()) == 2
    shown = json.loads(run("dead", "show", first, "--json").stdout)
    assert (shown["why"], shown["job"]["prompt"]) == ("strikes", "died of strikes")
    assert run("dead", "show", "0.default.unknown-job").exit_code == 4


def test_a_requeued_job_is_new_and_named_by_the_old(slipstream, real_desk):
    """Its letter is gone, and it waits on its lane."""
    (first, _), run = slipstream
    said = json.loads(run("dead", "requeue", first, "--json").stdout)
    assert real_desk.status(first).requeued_as == said["requeued_as"]
    claim = real_desk.take("b")
    assert claim.delivery.job_id == said["requeued_as"]
    assert wire.decode_job(claim.payload, claim.delivery.job_id).requeued_from == first
    assert len(run("dead", "list").stdout.splitlines()) == 1


def test_requeueing_and_purging_want_to_know_which(slipstream):
    """Neither takes all letters unless told so."""
    _, run = slipstream
    assert run("dead", "purge").exit_code == 2
    assert run("dead", "requeue").exit_code == 2
    assert run("dead", "purge", "--all").stdout == "2 purged\n"
    assert run("dead", "list").stdout == ""


def test_a_broken_off_requeue_is_one_job(slipstream, real_desk, redis_url):
    """Submitted, but the letter not yet taken away: done again it is the same new job."""
    (first, _), _ = slipstream
    with DeadLetters(redis_url, queue="test") as letters:
        letter = letters.get(first)
        real_desk.run(calls.enqueue(real_desk.keys, letter.job_anew()))
        assert letters.requeue(letter) == letter.job_anew().id
    assert len(real_desk.pull("b", room=5)) == 1
