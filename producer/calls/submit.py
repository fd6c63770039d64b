"""What producers do to jobs: enqueue, cancel, look. Each function describes one call; `run` or `arun` makes it."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Literal, cast

from producer import wire
from producer.calls.script import Call, script
from producer.errors import IdempotencyConflict, QueueFull, Undecodable
from producer.keys import GROUP, LANES, Keys, Lane
from producer.protocol import Failure, Job, State

DEFAULT_MAX_DEPTH = 100_000
"""Jobs a partition may hold where `T:control` says nothing: some 80 MB of Redis before their payloads."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job is in the queue. `duplicate`: it was already, and nothing was changed."""

    job_id: str
    duplicate: bool


def enqueue(keys: Keys, job: Job) -> Call[Enqueued]:
    """Put a job on its lane. Raises QueueFull; IdempotencyConflict if the id is another job's."""
    payload = wire.encode_job(job)

    def parse(answer: Any) -> Enqueued:
        outcome, *figures = answer
        if outcome == b"full":
            raise QueueFull(int(figures[0]), int(figures[1]), retry_after=1.0)
        if outcome == b"conflict":
            raise IdempotencyConflict(job.id)
        return Enqueued(job.id, duplicate=outcome == b"known")

    return Call(
        script("enqueue"),
        (keys.job(job.id), keys.lane(job.lane), *keys.lanes, keys.control),
        (job.id, job.lane, payload, digest(payload), round(job.result_ttl * 1000), DEFAULT_MAX_DEPTH),
        parse,
    )


@dataclass(frozen=True, slots=True)
class CancelReply:
    """What a cancel met: a queued or running job, which is now cancelled; one that had ended; or nothing."""

    met: Literal["queued", "running", "ended", "unknown"]
    state: State | None
    """The job's state now; None if unknown."""


def cancel(keys: Keys, job_id: str, reason: str = "cancelled by its producer") -> Call[CancelReply]:
    """End a job as cancelled, whoever works on it: its worker learns at its next flush that the job is nobody's."""

    def parse(answer: Any) -> CancelReply:
        met, state = answer
        return CancelReply(met.decode(), state.decode() if state else None)

    return Call(
        script("cancel"),
        (keys.job(job_id), keys.tokens(job_id), *keys.lanes),
        (
            GROUP,
            "cancelled",
            wire.encode_ended("cancelled", Failure(code="cancelled", message=reason)),
            secrets.token_hex(8),
        ),
        parse,
    )


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands. Times are Redis', in Unix seconds."""

    job_id: str
    state: State
    lane: Lane
    deliveries: int
    """How often a worker took it, hand-backs not counted."""
    offset: int
    """Tokens published so far."""
    consumer: str | None
    """Who works on it."""
    queued_at: float
    claimed_at: float | None
    """When a worker took it last."""
    ended_at: float | None
    last_event: str | None
    """The id of its last event. None before the first claim, and later than `result_ttl` after the end."""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("queued", "running")


def status(keys: Keys, job_id: str) -> Call[JobStatus | None]:
    """Look at a job; None if there is none."""

    def parse(answer: Any) -> JobStatus | None:
        if not answer:
            return None
        state, lane, deliveries, owner, queued, claimed, ended, offset, last_event = answer
        if not state or not lane:
            raise Undecodable("job", f"its hash {keys.job(job_id)} lacks its state or its lane")
        return JobStatus(
            job_id=job_id,
            state=state.decode(),
            lane=cast("Lane", lane.decode()),
            deliveries=int(deliveries or 0),
            offset=int(offset),
            consumer=owner.decode().partition(" ")[2] if owner else None,
            queued_at=int(queued or 0) / 1000,
            claimed_at=int(claimed) / 1000 if claimed else None,
            ended_at=int(ended) / 1000 if ended else None,
            last_event=last_event.decode() if last_event else None,
        )

    return Call(script("status"), (keys.job(job_id), keys.tokens(job_id)), (), parse)


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """Entries of a lane nobody has taken, and those that somebody works on (or had, when the lease ran out)."""

    waiting: int
    running: int


def depth(keys: Keys) -> Call[dict[Lane, LaneDepth]]:
    """How full each lane is."""

    def parse(answer: Any) -> dict[Lane, LaneDepth]:
        return {
            lane: LaneDepth(waiting=int(held) - int(pending), running=int(pending))
            for lane, (held, pending) in zip(LANES, answer, strict=True)
        }

    return Call(script("depth"), keys.lanes, (GROUP,), parse)


def digest(payload: bytes) -> str:
    """What tells one payload from another under the same id."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
