"""What a chaos run submits: every job, who submits it and what is done to it, all drawn from one seed.

Goes in: a seed and a number of jobs. Comes out: `Planned` jobs whose ids follow from the seed, the same in every
process, so the run and its reference need not tell each other. Knows neither Redis nor engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from ops.demo.tasks import Split, counting, sample_any
from producer.keys import Lane, idempotent_job_id
from producer.protocol import Job

TENANTS = ("alder", "birch", "cedar")
LANES: dict[Lane, float] = {"high": 0.2, "normal": 0.6, "low": 0.2}
LONGEST = 300
"""Tokens of the longest answer."""


@dataclass(frozen=True)
class Planned:
    """A job and what its producer and its reader do. Seconds count from its submission."""

    job: Job
    producer: int
    deadline_s: float | None = None
    not_before_s: float | None = None
    cancel_s: float | None = None
    twice: bool = False
    """It is submitted a second time under its idempotency key."""
    leaves: tuple[tuple[int, float], ...] = ()
    """Its reader disconnects at this many tokens, for these seconds."""


def plan(seed: int, jobs: int, producers: int) -> list[Planned]:
    """The jobs of a run, in the order of their submission."""
    rng = Random(f"jobs {seed}")
    return [_draw(rng, seed, number, producers) for number in range(jobs)]


def _draw(rng: Random, seed: int, number: int, producers: int) -> Planned:
    tenant = rng.choice(TENANTS)
    twice = rng.random() < 0.06
    key = f"chaos-{seed}-{number}" if twice else None
    job_id = idempotent_job_id(key, tenant=tenant) if key else f"0.{tenant}.chaos-{seed}-{number:05d}"
    job = Job(
        id=job_id,
        tenant=tenant,
        lane=rng.choices(list(LANES), list(LANES.values()))[0],
        idempotency_key=key,
        **_content(rng),
    )
    fate = rng.random()
    return Planned(
        job,
        producer=number % producers,
        cancel_s=rng.uniform(0.0, 1.0) if fate < 0.06 else None,
        deadline_s=rng.uniform(0.3, 4.0) if 0.06 < fate < 0.10 else None,
        not_before_s=rng.uniform(0.5, 3.0) if 0.10 < fate < 0.14 else None,
        twice=twice,
        leaves=_leaves(rng),
    )


def _content(rng: Random) -> dict[str, Any]:
    """A task of the demo: greedy, or in part by chance, or ended by a stop string, short or long."""
    kind = rng.random()
    if kind < 0.35:
        example = counting(rng, rng.randint(150, LONGEST))
    elif kind < 0.55:
        example = counting(rng, rng.randint(8, 150))
    else:
        example = sample_any(rng, Split.HELDOUT)
    sampling: dict[str, Any] = {"temperature": 0.0, "max_tokens": LONGEST}
    way = rng.random()
    if way < 0.40:
        sampling = {
            "temperature": rng.choice((0.7, 1.0, 1.3)),
            "seed": rng.getrandbits(63),
            "max_tokens": rng.choice((2, rng.randint(3, 100), LONGEST, LONGEST)),
            "ignore_eos": rng.random() < 0.7,
            **rng.choice(({}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05})),
        }
    elif way < 0.50:
        sampling["stop"] = (rng.choice((" 7", "er", "9 ", "two", ", ")),)
    elif way < 0.60:
        sampling |= {"max_tokens": LONGEST, "ignore_eos": True}
    if rng.random() < 0.5:
        return {"messages": ({"role": "user", "content": example.prompt},), "sampling": sampling}
    return {"prompt": example.prompt + "\n", "sampling": sampling}


def _leaves(rng: Random) -> tuple[tuple[int, float], ...]:
    """A third of all readers disconnect, once or twice."""
    if rng.random() > 0.33:
        return ()
    at = rng.randint(0, 20)
    first = (at, rng.uniform(0.0, 2.0))
    return (first, (at + rng.randint(1, 100), rng.uniform(0.0, 1.0))) if rng.random() < 0.5 else (first,)
