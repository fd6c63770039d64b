"""What a worker writes: tokens and ends, and what it may still write long after it has lost the job."""

from __future__ import annotations

from producer import calls
from producer.calls import Held, Publication
from producer.keys import HANDOFF
from tests.producer.fuzz import taking
from tests.producer.fuzz.failing import back_up, fail_over, kill
from tests.producer.fuzz.truth import HANDED_BACK, right
from tests.producer.fuzz.world import WORKERS, Work, World, blob, finish_call


def publish(world: World, name: str) -> None:
    """A step: what runs has some more tokens. A poison job kills its worker instead."""
    if not world.workers[name].works:
        taking.claim(world, name)
    if dies_of_poison(world, name) or not (works := list(world.workers[name].works.values())):
        return
    items = [publication(world, work, runs=world.workers[name].runs(work.delivery.job_id)) for work in works]
    call = calls.publish(world.keys, name, items)
    replies = world.run(call)
    world.sent.append((name, items, call))
    lost = world.chance.random() < 0.15
    for work, item, reply in zip(works, items, replies, strict=True):
        world.note(f"  {name} {item.job_id} {item.start}+{item.count}: {reply.status} {reply.offset}")
        world.judge(name, work, reply.status)
        if reply.status == "broken":
            world.discard(work.delivery, "its events are no stream")
            world.drop(name, item.job_id)
        elif lost:
            continue
        elif reply.status == "fenced":
            world.drop(name, item.job_id)
        else:
            work.offset = reply.offset


def publication(world: World, work: Work, *, runs: bool = True) -> Publication:
    job_id = work.delivery.job_id
    count = max(0, min(world.chance.randint(0, 3), world.job(job_id).length - work.offset)) if runs else 0
    ids = right(job_id, work.offset, work.offset + count)
    return Publication(job_id, work.epoch, work.offset, count, blob(job_id, work.offset, ids) if ids else None)


def dies_of_poison(world: World, name: str) -> bool:
    """Whether the worker ran a job that kills, which did so."""
    worker = world.workers[name]
    poison = [job_id for job_id in worker.works if world.job(job_id).is_poison and worker.runs(job_id)]
    if poison:
        world.note(f"  {name} dies of {poison[0]}")
        kill(world, name)
    return bool(poison)


def finish(world: World, name: str) -> None:
    """What runs and is nearly complete ends."""
    if not world.workers[name].works:
        publish(world, name)
    if dies_of_poison(world, name):
        return
    worker = world.workers[name]
    for work in list(worker.works.values()):
        job_id = work.delivery.job_id
        job = world.job(job_id)
        if job.length - work.offset > 2 or not worker.runs(job_id):
            continue
        reply = world.run(finish_call(world.keys, work, name, job.length))
        world.note(f"  {name} {job_id} ends at {job.length}: {reply.status} {reply.offset}")
        if reply.status == "already":
            assert (job.ended, job.ended_by) == ("stop", (name, work.epoch)), f"{job_id} had not ended so"
        else:
            world.judge(name, work, reply.status)
        if reply.status == "ok":
            job.end("stop", (name, work.epoch))
        if reply.status == "broken":
            world.discard(work.delivery, "its events are no stream")
        if reply.status == "gap":
            work.offset = reply.offset
        elif reply.status == "broken" or world.chance.random() < 0.8:
            world.drop(name, job_id)


def haunt(world: World, _: str) -> None:
    """A worker that lost a job long ago wakes up and goes on with it, in every way there is."""
    if not world.zombies:
        return
    name, work = world.chance.choice(_most_dangerous(world) or world.zombies)
    job_id, held = work.delivery.job_id, Held(work.delivery, work.epoch)
    job = world.job(job_id)
    if job.is_live and job.owner == (name, work.epoch):
        return  # it dropped the job for no reason, or a failover gave it back or lost it: no zombie
    (reply,) = world.run(calls.publish(world.keys, name, [publication(world, work)]))
    assert reply.status == "fenced", "a zombie published"
    reason = world.chance.choice(["stop", "dead"])
    ended = world.run(finish_call(world.keys, work, name, max(work.offset, job.length), reason))
    assert ended.status in ("fenced", "already"), "a zombie ended a job"
    late = world.run(calls.resolve(world.keys, job_id, work.epoch, name, b"late", "model"))
    assert late.status == "fenced", "a zombie decided something"
    assert world.run(calls.renew(world.keys, name, [held])) == [False], "a zombie renewed a lease"
    assert not world.run(calls.alone(world.keys, job_id, work.epoch, name)), "a zombie says what runs alone"
    if job.is_live:
        was_given = world.pending_at(work.delivery) == HANDOFF  # one that is no longer the job's may be, till a claim
        if world.leads_to(work.delivery):
            assert was_given == (job.holder == HANDED_BACK), "an entry is not where it should be"
        given = world.run(calls.hand_back(world.keys, name, [held]))
        assert given == [was_given], "a zombie handed something back"
    world.run(calls.retry(world.keys, work.delivery, name, work.epoch, "late"))


def _most_dangerous(world: World) -> list[tuple[str, Work]]:
    """Mostly those of a job that still lives, and of a worker that has it again, or of one that gave it up."""
    live = [(name, work) for name, work in world.zombies if world.job(work.delivery.job_id).is_live]
    owners = [world.job(work.delivery.job_id).owner for _, work in live]
    again = [each for each, owner in zip(live, owners, strict=True) if owner and owner[0] == each[0]]
    again = [(name, work) for name, work in again if world.job(work.delivery.job_id).owner != (name, work.epoch)]
    given_up = [each for each, owner in zip(live, owners, strict=True) if owner is None]
    return world.chance.choice([again, given_up, live, live, world.zombies])


def replay(world: World, _: str) -> None:
    """A publish of long ago arrives once more: a zombie's, or delayed on the way."""
    if not world.sent:
        return
    name, items, call = world.chance.choice(world.sent)
    for item, reply in zip(items, world.answer(call), strict=True):
        job = world.job(item.job_id)
        owner = job.owner if job.is_live else None
        assert (reply.status != "fenced") == (owner == (name, item.epoch)), "a replayed publish was let in, or not"
        lost_some = world.failed_over or item.job_id in world.torn
        assert item.count == 0 or reply.status != "ok" or lost_some, "old tokens went in twice"


def split(world: World, name: str) -> None:
    """A claim is lost in a failover, and its number is given to another worker."""
    back_up(world, "now")
    for worker in (name, world.chance.choice(WORKERS)):
        taking.reclaim(world, worker)
        taking.claim(world, worker)
        publish(world, worker)
        if worker == name:
            fail_over(world, "now")
