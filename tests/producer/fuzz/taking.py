"""What a worker does to get, keep and give up jobs: pull, reclaim, claim, start, renew, hand back, retry."""

from __future__ import annotations

from producer import calls, wire
from producer.calls import Claim, Delivery, Held
from tests.producer.fuzz.truth import HANDED_BACK, right
from tests.producer.fuzz.world import Work, World, finish_call

FOREVER_S = 3600.0  # a pause that ends only when the schedule says so


def pull(world: World, name: str) -> None:
    worker = world.workers[name]
    held = worker.held if worker.reply_lost else None
    room = world.chance.randint(1, 3)
    pulled = world.answer(calls.pull(world.keys, name, room, held=held))
    assert len(pulled.deliveries) + len(pulled.foreign) <= room
    for delivery in pulled.deliveries:
        if world.leads_to(delivery):
            holder = world.job(delivery.job_id).holder
            assert holder in (None, HANDED_BACK, name), f"{delivery.job_id} was pulled from {holder}"
            was_its_own = holder == name
            assert not was_its_own or (held is not None and delivery not in held), "pulled by who has it"
            assert was_its_own or world.truth.control.get("paused") != "1", "pulled although the queue is paused"
    worker.reply_lost = world.chance.random() < 0.15
    _delivered(world, name, pulled.deliveries, reclaimed=False)


def reclaim(world: World, name: str) -> None:
    """A worker looks for leases that have run out: any that is not its own may have."""
    worker = world.workers[name]
    reclaimed = world.answer(calls.reclaim(world.keys, name, 0, worker.cursor, world.chance.randint(1, 2)))
    worker.cursor = reclaimed.cursor
    worker.reply_lost = world.chance.random() < 0.15 or worker.reply_lost
    _delivered(world, name, reclaimed.deliveries, reclaimed=True)


def _delivered(world: World, name: str, deliveries: list[Delivery], *, reclaimed: bool) -> None:
    worker = world.workers[name]
    own = worker.held
    for delivery in deliveries:
        if world.leads_to(delivery):
            world.job(delivery.job_id).holder = name
        if not worker.reply_lost and delivery not in own:
            worker.unclaimed.append((delivery, reclaimed))


def claim(world: World, name: str) -> None:
    """Claim one delivery, for which a worker that has none pulls first."""
    worker = world.workers[name]
    if not worker.unclaimed:
        pull(world, name)
    if not worker.unclaimed:
        return
    delivery, reclaimed = worker.unclaimed.pop(0)
    job_id = delivery.job_id
    expected = _claim_expected(world, name, delivery)
    before = world.redis.hget(world.keys.job(job_id), "epoch") if world.job(job_id).is_known else None
    offset = world.tail(job_id)
    claim = world.run(calls.claim(world.keys, delivery, name, wire.encode_started(name), reclaimed=reclaimed))
    world.note(f"  {name} {job_id}: {claim.status} {claim.epoch} at {claim.offset}")
    assert claim.status == expected, f"a claim of {job_id} by {name} is {claim.status} instead of {expected}"
    match claim.status:
        case "late":
            expire_now(world, job_id)
        case "broken":
            world.discard(delivery, claim.why)
        case "ok":
            assert claim.epoch > int(before or 0), "a claim did not raise the epoch"
            _claimed(world, name, claim, offset, reclaimed=reclaimed)


def _claim_expected(world: World, name: str, delivery: Delivery) -> str:
    job = world.job(delivery.job_id)
    if job.harm == "hash" and job.ended is None:
        return "broken"
    if not job.is_live or job.delayed or not world.leads_to(delivery):
        return "gone"
    if job.holder != name:
        return "lost"
    if job.harm == "events":
        return "broken"
    return "late" if job.late else "ok"


def _claimed(world: World, name: str, claim: Claim, offset: int | None, *, reclaimed: bool) -> None:
    job_id = claim.delivery.job_id
    job = world.job(job_id)
    if reclaimed and job.owner is not None:
        job.is_lost(offset)
    job.deliveries += 1
    job.owner, job.alone, job.claim_offset = (name, claim.epoch), False, claim.offset
    assert (claim.strikes, claim.deliveries) == (job.strikes, job.deliveries), "strikes or deliveries"
    assert claim.offset == offset, "the claim has another offset than the events"
    before = [token_id for blob in claim.tokens for token_id in wire.decode_tokens(blob, 10**6).token_ids]
    assert before == right(job_id, 0, claim.offset), "the claim brings other tokens than were published"
    world.drop(name, job_id)
    work = Work(claim.delivery, claim.epoch, claim.offset, claim.strikes, claim.offset)
    if claim.strikes >= world.max_strikes:
        _bury(world, name, work)
        return
    world.workers[name].works[job_id] = work
    decided = world.run(calls.resolve(world.keys, job_id, claim.epoch, name, f"by {name}".encode(), "model"))
    assert decided.status == "ok"
    assert decided.blob == (claim.resolved or f"by {name}".encode()), "what was decided was decided again"
    if world.chance.random() < 0.8:
        start(world, name)


def _bury(world: World, name: str, work: Work) -> None:
    """A job that has cost too many workers becomes a dead letter: only one that was alone with them."""
    job = world.job(work.delivery.job_id)
    reply = world.run(finish_call(world.keys, work, name, work.offset, "dead"))
    assert reply.status == "ok", reply
    assert job.lost_alone >= world.max_strikes - 1, "a job is dead that was not to blame"
    job.end("dead", (name, work.epoch))
    world.truth.letters.append((work.delivery.job_id, "strikes"))


def start(world: World, name: str) -> None:
    """Have a suspect run alone, if there is one and none does."""
    worker = world.workers[name]
    alone = worker.works.get(worker.alone or "")
    if alone is not None and alone.is_suspect:
        return
    worker.alone = None
    for job_id, work in worker.works.items():
        if work.is_suspect:
            is_ours = world.run(calls.alone(world.keys, job_id, work.epoch, name))
            job = world.job(job_id)
            assert is_ours == (job.is_live and job.owner == (name, work.epoch)), "alone: let in, or not, wrongly"
            if is_ours:
                job.alone, worker.alone = True, job_id
            return


def renew(world: World, name: str) -> None:
    worker = world.workers[name]
    held = [Held(work.delivery, work.epoch) for work in worker.works.values()]
    held += [Held(delivery, None) for delivery, _ in worker.unclaimed]
    for item, kept in zip(held, world.run(calls.renew(world.keys, name, held)), strict=True):
        job = world.job(item.delivery.job_id)
        if item.epoch is not None and kept:
            assert job.owner == (name, item.epoch), "the lease of another's job was renewed"
        if kept:
            assert job.holder == name or not world.leads_to(item.delivery)
        if item.epoch is not None and not kept:
            world.drop(name, item.delivery.job_id)


def hand_back(world: World, name: str) -> None:
    """Some of a worker's jobs, each in a call of its own."""
    for work in list(world.workers[name].works.values()):
        if world.chance.random() < 0.5:
            _give(world, name, [Held(work.delivery, work.epoch)])
            world.drop(name, work.delivery.job_id)


def drain(world: World, name: str) -> None:
    """A worker is told to go: it hands all back in one call, claimed or not, and is gone."""
    worker = world.workers[name]
    held = [Held(work.delivery, work.epoch) for work in worker.works.values()]
    held += [Held(delivery, None) for delivery, _ in worker.unclaimed]
    if held:
        _give(world, name, held)
    for job_id in list(worker.works):
        world.drop(name, job_id)
    worker.unclaimed.clear()
    worker.reply_lost = False


def _give(world: World, name: str, held: list[Held]) -> None:
    expected = [_is_given(world, name, item) for item in held]
    answers = world.run(calls.hand_back(world.keys, name, held))
    for item, given, wanted in zip(held, answers, expected, strict=True):
        if wanted is None:
            continue
        assert given == wanted, f"{item.delivery.job_id}: handed back by who had it not"
        job = world.job(item.delivery.job_id)
        if given and job.holder == name:
            job.holder = HANDED_BACK
            if item.epoch is not None:
                job.owner, job.deliveries = None, job.deliveries - 1


def _is_given(world: World, name: str, item: Held) -> bool | None:
    """Whether a hand-back is the worker's to make; None where that is nobody's business: not the job's own entry."""
    job = world.job(item.delivery.job_id)
    if not job.is_live or not world.leads_to(item.delivery):
        return None
    owns = item.epoch is None or job.owner == (name, item.epoch)
    return job.holder == HANDED_BACK or (owns and job.holder == name)


def retry(world: World, name: str) -> None:
    """An engine is lost: its worker gives its jobs up."""
    for job_id, work in list(world.workers[name].works.items()):
        if world.chance.random() < 0.5:
            give_up(world, name, work)
            world.drop(name, job_id)


def give_up(world: World, name: str, work: Work) -> None:
    job_id = work.delivery.job_id
    job, offset = world.job(job_id), world.tail(job_id)
    given = world.run(
        calls.retry(world.keys, work.delivery, name, work.epoch, "its engine was lost", backoff_s=FOREVER_S)
    )
    world.note(f"  {name} {job_id} gives up: {given}")
    if job.harm == "hash":
        return
    if not job.is_live or job.owner != (name, work.epoch):
        assert given.status == "fenced", f"{job_id} was given up by who had it not: {given.status}"
        return
    blamed = job.is_lost(offset)
    assert given.status == ("delayed" if blamed else "queued"), given
    assert given.strikes == job.strikes, "strikes are not as counted"
    job.owner = None
    if blamed:
        job.holder, job.delayed, job.due = None, True, False
    elif job.holder == name and world.leads_to(work.delivery):
        job.holder = HANDED_BACK


def expire_now(world: World, job_id: str) -> None:
    """Someone saw that a deadline has passed."""
    job = world.job(job_id)
    reply = world.run(calls.expire(world.keys, job_id))
    if job.harm in ("vanished", "hash"):
        return
    expected = "ended" if not job.is_live else "early"
    if job.is_live and job.late:
        assert reply.state == "expired", reply
        over(world, job_id, "expired")
    else:
        assert reply.met == expected, f"an expiry met {reply.met}, not {expected}"


def over(world: World, job_id: str, how: str) -> None:
    """A job ended from outside; broken events went with it."""
    job = world.job(job_id)
    job.end(how)
    if job.harm == "events":
        job.harm = None
