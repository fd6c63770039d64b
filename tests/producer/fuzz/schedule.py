"""A schedule: what happens, act by act, made from a seed; played, and where it fails, shrunk to what it takes to fail.

An act is its name, its worker and a number from which all its chance comes, so acts can be left out of a schedule
while the others stay what they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.producer.fuzz import audit, failing, harming, keeping, reading, submitting, taking, writing
from tests.producer.fuzz.world import TENANTS, WORKERS, Breaking, Worker, World

Act = Callable[[World, str], None]
WEIGHTS: dict[Act, float] = {
    taking.pull: 8,
    taking.claim: 16,
    taking.reclaim: 6,
    taking.start: 2,
    taking.renew: 2,
    taking.hand_back: 1.5,
    taking.drain: 1,
    taking.retry: 2,
    writing.publish: 14,
    writing.finish: 8,
    writing.haunt: 4,
    writing.replay: 2,
    writing.split: 1.5,
    submitting.submit: 10,
    submitting.submit_again: 1,
    submitting.cancel: 2,
    submitting.requeue: 2,
    keeping.grow_late: 3,
    keeping.fall_due: 2,
    keeping.promote: 1,
    keeping.sweep: 3,
    keeping.tidy: 1,
    keeping.beat: 2,
    keeping.pause: 1,
    keeping.resume: 1,
    keeping.limit: 1,
    keeping.forget: 0.8,
    failing.kill: 2,
    failing.back_up: 2,
    failing.fail_over: 2,
    failing.silence: 1,
    harming.litter: 2,
    harming.lose_group: 0.7,
    harming.lose_lane: 0.7,
    harming.vanish: 0.3,
    harming.overwrite: 0.6,
    harming.lose_events: 0.4,
    reading.look: 4,
    audit.check: 6,
}
HABITS = (0.3, 1, 1, 5)
THEMES = {
    "any": "",
    "owners": "haunt retry hand_back kill reclaim claim",
    "streams": "overwrite lose_events publish finish cancel fail_over litter",
    "repeats": "requeue submit_again overwrite cancel retry forget claim",
    "blame": "kill reclaim claim start retry drain",
    "times": "grow_late fall_due promote retry cancel",
    "tenants": "submit limit finish cancel vanish",
    "healing": "lose_lane lose_group sweep beat vanish claim",
}
"""What happens more often than else in schedules of a kind."""
ACTS = {act.__name__: act for act in WEIGHTS}


class Step(NamedTuple):
    """One act of a schedule."""

    act: str
    worker: str
    seed: int


@dataclass(frozen=True)
class Schedule:
    """Everything that happens, before a last worker comes and does what is left. `seed`: what is set at the start."""

    seed: int
    steps: tuple[Step, ...]

    def without(self, at: int, count: int = 1) -> Schedule:
        """The same, but for so many acts from there."""
        return Schedule(self.seed, self.steps[:at] + self.steps[at + count :])

    def __str__(self) -> str:
        return "\n".join(f"  {step.worker} {step.act}" for step in self.steps) or "  nothing at all"


class Failed(AssertionError):
    """A schedule after which something is not as it must be."""

    def __init__(self, schedule: Schedule, why: str, log: list[str], steps: int) -> None:
        super().__init__(why)
        self.schedule, self.why, self.log, self.steps = schedule, why, log, steps


def make(seed: int, theme: str | None = None) -> Schedule:
    """The schedule of a seed. theme: one of THEMES, else one by chance."""
    chance = random.Random(seed)
    common = THEMES[theme or chance.choice([*THEMES])].split()
    # Each schedule has its own habits: what is rare in one is common in another, and so meets itself there too.
    weights = [
        max(4 * weight, 6) if act.__name__ in common else weight * chance.choice(HABITS)
        for act, weight in WEIGHTS.items()
    ]
    drawn = ["submit", *chance.choices([*ACTS], weights, k=chance.randint(20, 90))]
    return Schedule(seed, tuple(Step(name, chance.choice(WORKERS), chance.getrandbits(32)) for name in drawn))


def play(redis: Any, schedule: Schedule, breaking: Breaking | None = None) -> None:
    """Play a schedule on an empty database, to the end. Raises Failed. `breaking` changes the scripts."""
    world, steps = World(redis, schedule.seed, breaking), 0
    try:
        for step in schedule.steps:
            steps += 1
            world.note(f"{step.worker} {step.act}")
            world.chance.seed(step.seed)
            ACTS[step.act](world, step.worker)
        world.chance.seed(schedule.seed)
        _bring_to_an_end(world)
        audit.check_all(world)
    except Exception as error:
        why = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise Failed(schedule, why, world.log, steps) from error


def _bring_to_an_end(world: World) -> None:
    """The three die, time passes, limits are lifted; a fourth comes and ends everything."""
    for name in WORKERS:
        failing.kill(world, name)
        failing.silence(world, name)
    for name in [*world.truth.control]:
        if name != "tenant_window":
            world.set(name, None)
    world.truth.raised.update(TENANTS)
    world.workers["Z"] = Worker()
    world.sweep_cursor = 0
    for _ in range(200):
        for job_id, job in world.truth.jobs.items():
            if job.is_live and job.delayed:
                keeping.come_due(world, job_id)
        keeping.sweep(world, "", 100)
        audit.check(world)
        if not world.redis.exists(world.keys.deadlines) and not any(map(world.redis.xlen, world.keys.lanes)):
            return
        world.note("Z")
        taking.pull(world, "Z")
        taking.reclaim(world, "Z")
        while world.workers["Z"].unclaimed:
            taking.claim(world, "Z")
        for _ in range(20):
            taking.start(world, "Z")
            writing.publish(world, "Z")
            writing.finish(world, "Z")
            if not world.workers["Z"].works:
                break
    raise AssertionError(f"jobs are left that nobody is given: {world.truth.live}")


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], steps: int, tries: int = 400) -> Schedule:
    """A part of a failing schedule that fails as well, and would not with any one act less; `steps`: how far it came.

    Halves are left out, then quarters, and so on to single acts, as long as something can be.
    """
    kept = schedule.without(steps, len(schedule.steps))
    size = max(1, steps // 2)
    while tries > 0:
        for at in range(0, len(kept.steps), size):
            tries -= 1
            if fails(fewer := kept.without(at, size)):
                kept = fewer
                break
        else:
            if size == 1:
                break
            size //= 2
    return kept


def report(failed: Failed, shrunk: Failed) -> str:
    """What a failing seed prints."""
    acts, of = len(shrunk.schedule.steps), len(failed.schedule.steps)
    return (
        f"seed {failed.schedule.seed}: {failed.why}\n"
        f"shrunk to {acts} of {of} acts: {shrunk.why}\n{shrunk.schedule}\n"
        "what happened in them:\n" + "\n".join(shrunk.log[-80:])
    )
