"""What producers and operators do to jobs: submit, submit again, cancel, requeue what is dead."""

from __future__ import annotations

from producer import calls
from producer.errors import IdempotencyConflict, QueueFull, Undecodable
from producer.keys import LANES
from producer.protocol import Job
from tests.producer.fuzz.keeping import forget
from tests.producer.fuzz.taking import over
from tests.producer.fuzz.truth import JobTruth
from tests.producer.fuzz.world import READY, TENANTS, WAITING, World

FAR = float(2**32)  # Unix seconds that come only when the schedule says so


def submit(world: World, _: str) -> None:
    """A job, now and then under a key that another may have, or for later."""
    chance = world.chance
    tenant, lane, later = chance.choice(TENANTS), chance.choice(LANES), chance.random() < 0.1
    times = {"not_before": FAR, "deadline": FAR + 60} if later else {}
    if chance.random() < 0.2:
        key = f"key-{chance.randint(0, 2)}"
        job = Job(prompt=chance.choice("xxxy"), tenant=tenant, idempotency_key=key, **times)
    else:
        job = Job(prompt="x", lane=lane, tenant=tenant, id=f"0.{tenant}.job-{world.submitted:08d}", **times)
        world.submitted += 1
    enqueue(world, job, is_poison=chance.random() < 0.12)


def submit_again(world: World, _: str) -> None:
    """A producer does not know whether its job arrived, and sends it once more; or another under the same id."""
    vanished = world.some_job(lambda job: job.harm == "vanished") if world.chance.random() < 0.4 else None
    if job := vanished or world.some_job(lambda job: not job.forgotten):
        prompt = world.chance.choice([job.job.prompt, job.job.prompt, "z"])
        enqueue(world, job.job.model_copy(update={"prompt": prompt}), is_poison=job.is_poison)


def enqueue(world: World, job: Job, *, is_poison: bool) -> bool:
    """Submit a job; whether it is in the queue now. What is in it already is not changed."""
    expected = _enqueue_expected(world, job)
    answer = world.run(calls.enqueue(world.keys, job))
    found = "ok" if isinstance(answer, calls.Enqueued) and not answer.duplicate else _in_a_word(answer)
    world.note(f"  {job.id} on {job.lane}: {found}")
    assert found == expected, f"{job.id} was answered {found} instead of {expected}"
    if expected == "ok":
        before = world.truth.jobs.get(job.id)
        world.truth.jobs[job.id] = JobTruth(job, is_poison, delayed=job.not_before is not None, came_back=bool(before))
        world.redis.hset(world.keys.job(job.id), "epoch", world.first_epoch)
        if before:
            world.torn.add(job.id)
        else:
            _stands_behind(world, job)
    return expected in ("ok", "known")


def _stands_behind(world: World, job: Job) -> None:
    """A job that is on its lane has overtaken none of its tenant's that wait in line for it, or for a higher one."""
    about = world.keys.about(job.id)
    if world.redis.hexists(about[READY], job.id):
        line = [name.decode().split(" ") for name in world.redis.zrange(about[WAITING], 0, -1)]
        passed = [other for lane, other in line if LANES.index(lane) <= LANES.index(job.lane)]
        assert not passed, f"{job.id} overtook {passed}"


def _in_a_word(answer: object) -> str:
    match answer:
        case calls.Enqueued():
            return "known"
        case IdempotencyConflict():
            return "conflict"
        case QueueFull():
            return f"full: {answer.what}"
        case Undecodable():
            return "broken"
    return repr(answer)


def _enqueue_expected(world: World, job: Job) -> str:
    known = world.truth.jobs.get(job.id)
    if known is not None and known.harm == "hash" and known.ended is None:
        return "broken"
    if known is not None and known.is_known:
        return "known" if _content(known.job) == _content(job) else "conflict"
    control, about = world.truth.control, world.keys.about(job.id)
    if world.redis.zcard(world.keys.deadlines) >= int(control.get("max_depth", 10**6)):
        return "full: depth"
    if world.redis.zcard(about[WAITING]) + world.redis.hlen(about[READY]) >= int(control.get("tenant_queued", 10**6)):
        return "full: tenant"
    return "ok"


def _content(job: Job) -> Job:
    """What is asked for, whenever it is wanted."""
    return job.model_copy(update={"not_before": None, "deadline": None})


def cancel(world: World, _: str) -> None:
    job = world.some_job(lambda job: not job.forgotten and job.harm != "hash") if world.chance.random() < 0.5 else None
    if job is None:
        return
    reply = world.run(calls.cancel(world.keys, job.job.id))
    if job.harm == "vanished":
        assert reply.met == "unknown", reply
        return
    assert (reply.met == "ended") == (job.ended is not None), f"a cancel met {reply.met}"
    if job.is_live:
        over(world, job.job.id, "cancelled")


def requeue(world: World, _: str) -> None:
    """An operator has a dead letter's job run anew; now and then two do."""
    letters = calls.read_letters(world.redis.xrange(world.keys.dead))
    if not letters:
        return
    letter = world.chance.choice(letters)
    if world.chance.random() < 0.3 and world.job(letter.job_id).ended:
        forget(world, letter.job_id)
    times = world.chance.choice([1, 1, 2])
    new_id = ""
    for _ in range(times):
        try:
            job = letter.job_anew()
        except Undecodable:
            assert letter.why == "broken", letter
            break
        if not enqueue(world, job, is_poison=world.job(letter.job_id).is_poison):
            return
        new_id = job.id
    for nth in range(times):
        was_there = world.answer(calls.settle(world.keys, letter, new_id))
        assert was_there == (nth == 0), "a dead letter was settled twice"
    world.truth.letters.remove((letter.job_id, letter.why))
