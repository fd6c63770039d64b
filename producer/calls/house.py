"""Housekeeping, in small bounded passes: what is due, late, lost or forgotten. Several at once do no harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from producer.calls.script import Call, script
from producer.keys import GROUP, Keys, new_job_id, tenant_of

KEEP_DEAD_S = 30 * 86_400.0
GONE_AFTER_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to look at now. Pass `cursor` to the next `due`: it goes round all live jobs."""

    delayed: list[str]
    """Jobs that are due: promote them."""
    late: list[str]
    """Jobs whose deadline has passed: expire them."""
    some: list[str]
    """A few of all live jobs: heal them."""
    cursor: int
    tenants: list[str]
    """Tenants whose jobs wait for their turn: refill."""


def due(keys: Keys, most: int, cursor: int) -> Call[Due]:
    """At most `most` of each."""

    def parse(answer: Any) -> Due:
        delayed, late, some, following, tenants = answer
        ids = ([name.decode() for name in names] for names in (delayed, late, some, tenants))
        first, second, third, fourth = ids
        return Due(first, second, third, int(following), fourth)

    return Call(script("due"), (keys.deadlines, keys.delayed, keys.counts), (most, cursor), parse)


def promote(keys: Keys, job_id: str) -> Call[str]:
    """Have a delayed job that is due wait for a worker: `ok`, `not due`, `not delayed` or `gone`."""
    return Call(script("promote"), keys.about(job_id), (job_id, tenant_of(job_id)), lambda answer: answer.decode())


def heal(keys: Keys, job_id: str) -> Call[str]:
    """Put a live job back where it will be found, if it is not: `ok`, `healed`, `ended` or `gone`."""
    return Call(script("heal"), keys.about(job_id), (GROUP, job_id, tenant_of(job_id)), lambda answer: answer.decode())


def refill(keys: Keys, tenant: str) -> Call[None]:
    """Give a tenant's waiting jobs their turn, as far as its limits allow now."""
    return Call(script("refill"), keys.about(new_job_id(keys.partition, tenant)), (tenant,), lambda _: None)


def tidy(keys: Keys, *, gone_after_s: float = GONE_AFTER_S, keep_dead_s: float = KEEP_DEAD_S) -> Call[int]:
    """Forget consumers that are gone and old dead letters; how many consumers."""
    args = (GROUP, round(gone_after_s * 1000), round(keep_dead_s * 1000))
    return Call(script("tidy"), (*keys.lanes, keys.dead), args, int)


def clock(keys: Keys) -> Call[float]:
    """Redis' clock, in Unix seconds."""
    return Call(script("clock"), keys.lanes, (), lambda answer: int(answer) / 1000)
