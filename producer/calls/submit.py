"""What producers do to jobs: enqueue, cancel, expire, look. Each function is a call, made by `run` or `arun`."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Literal, cast

from producer import wire
from producer.calls.script import Call, script
from producer.errors import IdempotencyConflict, InvalidJob, QueueFull, Undecodable
from producer.keys import GROUP, LANES, Keys, Lane, tenant_of
from producer.protocol import Failure, FinishReason, Job, State

DEFAULT_MAX_DEPTH = 100_000
"""Live jobs a partition may hold where `T:control` says nothing: some 80 MB of Redis before their payloads."""
DEFAULT_MAX_BYTES = 1 << 30
"""Bytes of payloads that live jobs of a partition may hold together, where `T:control` says nothing."""
DEFAULT_MAX_AGE_S = 86_400.0
"""How long a job may live, from when it may run, where neither it nor `T:control` says less: no job is for ever."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job is in the queue. `duplicate`: it was already, and nothing was changed."""

    job_id: str
    duplicate: bool


def enqueue(keys: Keys, job: Job) -> Call[Enqueued]:
    """Accept a job. Raises QueueFull; IdempotencyConflict if the id is another job's; InvalidJob if it is too late."""
    payload = wire.encode_job(job)

    def parse(answer: Any) -> Enqueued:
        outcome, *figures = answer
        if outcome == b"full":
            what, depth, limit, wait_ms = figures
            raise QueueFull(int(depth), int(limit), int(wait_ms) / 1000, what=what.decode())
        if outcome == b"conflict":
            raise IdempotencyConflict(job.id)
        if outcome == b"late":
            raise InvalidJob(
                "deadline", job.deadline, f"a time to come; Redis' clock says {int(figures[0]) / 1000:.3f}"
            )
        return Enqueued(job.id, duplicate=outcome == b"known")

    keep = max(job.result_ttl, job.idempotency_ttl if job.idempotency_key is not None else 0.0)
    return Call(
        script("enqueue"),
        keys.about(job.id),
        (
            *(job.id, job.tenant, job.lane, payload, _content(job, payload), _ms(job.result_ttl), _ms(keep)),
            *(_ms(job.not_before or 0.0), _ms(job.deadline or 0.0)),
            *(DEFAULT_MAX_DEPTH, DEFAULT_MAX_BYTES, _ms(DEFAULT_MAX_AGE_S)),
        ),
        parse,
    )


def _content(job: Job, payload: bytes) -> str:
    """The digest of what is asked for. When it is wanted is left out: a repeat says another time."""
    if job.not_before is None and job.deadline is None:
        return digest(payload)
    return digest(wire.encode_job(job.model_copy(update={"not_before": None, "deadline": None})))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


@dataclass(frozen=True, slots=True)
class CancelReply:
    """What a cancel met: a live job, which is now cancelled; one that had ended; or nothing.

    An expiry meets `early` where the deadline is still to come: nothing was done.
    """

    met: Literal["queued", "running", "delayed", "ended", "unknown", "early"]
    state: State | None
    """The job's state now; None if unknown."""


def cancel(keys: Keys, job_id: str, reason: str = "cancelled by its producer") -> Call[CancelReply]:
    """End a job as cancelled, whoever works on it: its worker learns at its next flush that the job is nobody's."""
    return _stop(keys, job_id, "cancelled", Failure(code="cancelled", message=reason))


def expire(keys: Keys, job_id: str) -> Call[CancelReply]:
    """End a job whose deadline has passed as expired, whoever works on it. Before that it does nothing."""
    return _stop(keys, job_id, "expired", Failure(code="deadline", message="the job's deadline passed before its end"))


def _stop(keys: Keys, job_id: str, how: FinishReason, why: Failure) -> Call[CancelReply]:
    def parse(answer: Any) -> CancelReply:
        met, state = answer
        return CancelReply(met.decode(), state.decode() if state else None)

    ended, nonce = wire.encode_ended(how, why), secrets.token_hex(8)
    return Call(script("stop"), keys.about(job_id), (GROUP, job_id, tenant_of(job_id), how, ended, nonce), parse)


@dataclass(frozen=True, slots=True)
class Happening:
    """A line of a job's history."""

    at: float
    """Unix seconds, by Redis' clock."""
    offset: int
    """Tokens the job had."""
    what: str


def read_history(text: bytes) -> tuple[Happening, ...]:
    """The lines that scripts/prelude.lua writes; what is none is left out."""
    found = []
    for line in text.decode(errors="replace").splitlines():
        at, offset, what = [*line.split(" ", 2), "", ""][:3]
        if at.isdigit() and offset.isdigit():
            found.append(Happening(int(at) / 1000, int(offset), what))
    return tuple(found)


def _seconds(ms: bytes | None) -> float | None:
    return int(ms) / 1000 if ms else None


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
    deadline: float | None
    """When it expires."""
    due: float | None
    """When it may run (again), if it was delayed."""
    strikes: int
    """How often a worker was lost over it."""
    requeued_as: str | None
    """The job that a dead one was submitted anew as."""
    history: tuple[Happening, ...]
    """Claims, losses and hand-backs so far."""
    last_event: str | None
    """The id of its last event. None before the first claim, and later than `result_ttl` after the end."""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("queued", "running", "delayed")


def status(keys: Keys, job_id: str) -> Call[JobStatus | None]:
    """Look at a job; None if there is none."""

    def parse(answer: Any) -> JobStatus | None:
        if not answer:
            return None
        state, lane, deliveries, owner, queued, claimed, ended, offset, *rest = answer
        strikes, deadline, due, requeued_as, history, last_event = rest
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
            claimed_at=_seconds(claimed),
            ended_at=_seconds(ended),
            deadline=_seconds(deadline),
            due=_seconds(due),
            strikes=int(strikes or 0),
            requeued_as=requeued_as.decode() if requeued_as else None,
            history=read_history(history or b""),
            last_event=last_event.decode() if last_event else None,
        )

    return Call(script("status"), (keys.job(job_id), keys.tokens(job_id)), (), parse)


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """Jobs that nobody has taken, on the lane and in their tenants' lines; and those that somebody works on."""

    waiting: int
    running: int


def depth(keys: Keys) -> Call[dict[Lane, LaneDepth]]:
    """How full each lane is. Delayed jobs are on none yet."""

    def parse(answer: Any) -> dict[Lane, LaneDepth]:
        figures = [int(figure) for figure in answer]
        return {
            lane: LaneDepth(waiting=held - pending + in_line, running=pending)
            for lane, held, pending, in_line in zip(LANES, figures[::3], figures[1::3], figures[2::3], strict=False)
        }

    return Call(script("depth"), (*keys.lanes, keys.counts, keys.delayed), (GROUP,), parse)


def digest(payload: bytes) -> str:
    """What tells one payload from another under the same id."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()
