"""What a worker does to get, keep and give up jobs: pull, reclaim, claim, resolve, renew, hand back, retry.

An owner of a job is the pair of epoch and consumer; every script checks both. A consumer's name is used by one process
start only. Each function describes one call; `run` or `arun` makes it.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from producer.calls.script import Call, script
from producer.keys import GROUP, HANDOFF, LANES, Keys, Lane, tenant_of
from producer.protocol import Failure
from producer.wire import encode_ended

WEIGHTS: tuple[int, int, int] = (8, 3, 1)
"""Turns of high, normal and low where all three have work waiting."""
AGEING_MS = 60_000
"""A lane's weight doubles when its head has waited this long, trebles after twice as long, up to eightfold."""


class Delivery(NamedTuple):
    """A lane's entry that is ours to claim."""

    job_id: str
    lane: Lane
    entry: str
    partition: int = 0
    """Whose lane it is."""


class Held(NamedTuple):
    """What a worker holds: a delivery, and the epoch of its claim (None: not claimed yet)."""

    delivery: Delivery
    epoch: int | None


@dataclass(frozen=True, slots=True)
class Pulled:
    """What one pull brought. `foreign` are entries without a job id, which were removed: log and count them."""

    deliveries: list[Delivery]
    foreign: list[str] = field(default_factory=list)


def ensure_group(keys: Keys) -> Call[None]:
    """Create the lanes and their group, from the first entry on, where they are missing.

    pull and reclaim do so themselves; this is for a deployment whose autoscaler looks before any worker runs.
    """
    return Call(script("ensure_group"), keys.lanes, (GROUP,), lambda _: None)


def pull(
    keys: Keys,
    consumer: str,
    room: int,
    *,
    fingerprint: str = "",
    held: Collection[Delivery] | None = None,
    weights: tuple[int, int, int] = WEIGHTS,
    ageing_ms: int = AGEING_MS,
) -> Call[Pulled]:
    """Take at most `room` entries: what was handed back first, then the lanes in weighted turns.

    `fingerprint` is the worker's model: what was handed back for that model alone is taken too. After a pull whose
    reply was lost, pass all this worker holds as `held`: entries that are its own without its knowing come first.

    No lane starves: with work waiting, a lane has a turn within 89 entries taken (12 while the heads of all lanes have
    waited equally long).
    """
    recover = held is not None
    known = tuple(f"{LANES.index(delivery.lane) + 1}:{delivery.entry}" for delivery in held or ())
    own = (HANDOFF, f"{HANDOFF}:{fingerprint}") if fingerprint else (HANDOFF,)
    return Call(
        script("pull"),
        (*keys.lanes, keys.turns, keys.control),
        (GROUP, consumer, room, ageing_ms, *weights, int(recover), len(own), *own, *known),
        partial(_pulled, keys.partition),
    )


@dataclass(frozen=True, slots=True)
class ReclaimCursor:
    """Where the search for entries past their lease goes on, lane by lane."""

    high: str = "0-0"
    normal: str = "0-0"
    low: str = "0-0"

    @property
    def at_start(self) -> bool:
        """Whether the last call reached the end of every lane."""
        return (self.high, self.normal, self.low) == ("0-0",) * 3


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What one reclaim brought, and the cursor to pass to the next. `foreign` as in Pulled."""

    cursor: ReclaimCursor
    deliveries: list[Delivery]
    foreign: list[str] = field(default_factory=list)


def reclaim(keys: Keys, consumer: str, lease_ms: int, cursor: ReclaimCursor, count: int) -> Call[Reclaimed]:
    """Take over at most `count` entries that nobody has renewed for `lease_ms`.

    Redis looks at ten times `count` entries a call, so go on with the cursor until it is `at_start` or rows are full.
    """

    def parse(answer: Any) -> Reclaimed:
        cursors, *taken = answer
        pulled = _pulled(keys.partition, taken)
        return Reclaimed(ReclaimCursor(*(at.decode() for at in cursors)), pulled.deliveries, pulled.foreign)

    return Call(
        script("reclaim"),
        keys.lanes,
        (GROUP, consumer, lease_ms, count, cursor.high, cursor.normal, cursor.low),
        parse,
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """`ok`: the job is ours under `epoch`. `lost`: another's; forget it. `gone`: over or never was; entry removed.

    `late`: its deadline has passed, end it as expired. `broken`: its keys hold what is none of ours, discard it.
    """

    status: Literal["ok", "lost", "gone", "late", "broken"]
    delivery: Delivery
    epoch: int = 0
    payload: bytes | None = None
    """The job as it was enqueued (wire.decode_job). None if the hash has lost it: finish the job as failed."""
    deliveries: int = 0
    """How often the job was taken, this time included."""
    strikes: int = 0
    """How often a worker was lost over it. With one or more it is to run alone until it adds a token."""
    offset: int = 0
    """Tokens published so far."""
    tokens: list[bytes] = field(default_factory=list)
    """Their blobs, in order (wire.decode_tokens)."""
    resolved: bytes | None = None
    """What the first owner decided; None: nobody has (see `resolve`)."""
    fingerprint: str | None = None
    """The model it was decided for."""
    queued_at_ms: int = 0
    claimed_at_ms: int = 0
    """Redis' clock at enqueue and at this claim."""
    deadline_ms: int = 0
    """When the job expires, by the same clock. 0: its hash does not say."""
    history: str = ""
    why: str = ""
    """What is broken."""


def claim(
    keys: Keys,
    delivery: Delivery,
    consumer: str,
    started: bytes,
    *,
    reclaimed: bool = False,
    nonce: str | None = None,
) -> Call[Claim]:
    """Become a delivered job's owner and publish `started` (wire.encode_started).

    reclaimed: its last owner's lease ran out, which counts against a job that added nothing meanwhile. A claim whose
    reply was lost is made again with the same `nonce`, and is the same claim.
    """

    def parse(answer: Any) -> Claim:
        outcome, *rest = answer
        if outcome == b"broken":
            return Claim("broken", delivery, why=rest[0].decode())
        if outcome != b"ok":
            return Claim(outcome.decode(), delivery)
        (
            epoch,
            offset,
            deliveries,
            strikes,
            payload,
            resolved,
            fingerprint,
            queued_at,
            now,
            deadline,
            history,
            *tokens,
        ) = rest
        return Claim(
            "ok",
            delivery,
            epoch=int(epoch),
            payload=payload,
            deliveries=int(deliveries),
            strikes=int(strikes),
            offset=int(offset),
            tokens=tokens,
            resolved=resolved,
            fingerprint=fingerprint.decode() if fingerprint else None,
            queued_at_ms=int(queued_at),
            claimed_at_ms=int(now),
            deadline_ms=int(deadline),
            history=history.decode(errors="replace"),
        )

    job_id, lane, entry, _ = delivery
    return Call(
        script("claim"),
        keys.about(job_id),
        (
            *(GROUP, job_id, tenant_of(job_id), consumer, lane, entry),
            *(started, nonce or secrets.token_hex(8), int(reclaimed)),
        ),
        parse,
    )


def alone(keys: Keys, job_id: str, epoch: int, consumer: str) -> Call[bool]:
    """Say that a job with a strike runs alone from now on. False: it is not ours any more."""
    return Call(script("alone"), (keys.job(job_id),), (epoch, consumer), bool)


@dataclass(frozen=True, slots=True)
class Resolution:
    """`ok`: work by `blob`. `mismatch`: tokens of the model `fingerprint` are out, hand back. `fenced`: not ours."""

    status: Literal["ok", "mismatch", "fenced"]
    blob: bytes | None = None
    fingerprint: str | None = None


def resolve(keys: Keys, job_id: str, epoch: int, consumer: str, blob: bytes, fingerprint: str) -> Call[Resolution]:
    """Store what the first owner decided, once, and answer what is stored.

    `blob` is the worker's own business: prompt ids, seed, sampling values, stop ids. Another model's decisions are
    replaced while none of its tokens is published, since nobody has seen anything of them.
    """

    def parse(answer: Any) -> Resolution:
        outcome, stored, by = answer
        return Resolution(outcome.decode(), stored, by.decode() if by else None)

    return Call(script("resolve"), (keys.job(job_id), keys.tokens(job_id)), (epoch, consumer, blob, fingerprint), parse)


def renew(keys: Keys, consumer: str, held: Sequence[Held]) -> Call[list[bool]]:
    """Start the leases anew, of claimed and unclaimed deliveries. False: it is another's now, drop the sequence."""
    return Call(
        script("renew"),
        (*keys.lanes, *(keys.job(item.delivery.job_id) for item in held)),
        (GROUP, consumer, *_held(held)),
        lambda answer: [bool(kept) for kept in answer],
    )


def hand_back(keys: Keys, consumer: str, held: Sequence[Held], fingerprint: str = "") -> Call[list[bool]]:
    """Give jobs up at once, tokens kept, nothing counted: any worker takes them at its next pull, and idle ones wake.

    With `fingerprint` only a worker of that model takes them at once (others once a lease has run out). False: it was
    not ours to give.
    """
    to = f"{HANDOFF}:{fingerprint}" if fingerprint else HANDOFF
    return Call(
        script("hand_back"),
        (*keys.lanes, keys.bell, *(keys.job(item.delivery.job_id) for item in held)),
        (GROUP, consumer, to, *_held(held)),
        lambda answer: [bool(given) for given in answer],
    )


@dataclass(frozen=True, slots=True)
class Retried:
    """`delayed`: it comes again after a pause. `queued`: anyone may take it at once. `fenced`: it was not ours."""

    status: Literal["delayed", "queued", "fenced"]
    strikes: int


def retry(
    keys: Keys, delivery: Delivery, consumer: str, epoch: int, error: str, *, backoff_s: float = 1.0
) -> Call[Retried]:
    """Give a job up because the machine failed it, with `error` (one line) in its history.

    What may have been the job's own fault comes again after `backoff_s`, twice as late with each strike, a minute at
    most, give or take half. What was not comes again at once. A re-sent retry gets the same answer.
    """
    job_id, lane, entry, _ = delivery
    return Call(
        script("retry"),
        keys.about(job_id),
        (
            *(GROUP, job_id, tenant_of(job_id), consumer, epoch, entry, lane),
            *(" ".join(error.split())[:300], round(backoff_s * 1000), f"{random.random():.6f}", HANDOFF),
        ),
        lambda answer: Retried(answer[0].decode(), int(answer[1])),
    )


def discard(keys: Keys, delivery: Delivery, why: str, *, only_if_wrong: bool = False) -> Call[bool]:
    """Make a dead letter of a job whose keys hold what is none of ours, and clear its keys away.

    only_if_wrong: look at the keys first, and do nothing (False) if they are of the right kind.
    """
    job_id, lane, entry, _ = delivery
    ended = encode_ended("dead", Failure(code="broken", message=why))
    return Call(
        script("discard"),
        keys.about(job_id),
        (GROUP, job_id, tenant_of(job_id), entry, lane, ended, "broken", int(only_if_wrong)),
        bool,
    )


def _held(held: Sequence[Held]) -> tuple[str | int, ...]:
    """Three arguments each: number of the lane, entry, epoch (empty if not claimed)."""
    arguments: list[str | int] = []
    for delivery, epoch in held:
        arguments += (LANES.index(delivery.lane) + 1, delivery.entry, "" if epoch is None else epoch)
    return tuple(arguments)


def _pulled(partition: int, answer: Any) -> Pulled:
    """From a list of [number of the lane, entry, job id or empty]."""
    pulled = Pulled([], [])
    for number, entry, job_id in answer:
        lane = LANES[int(number) - 1]
        if job_id:
            pulled.deliveries.append(Delivery(job_id.decode(), lane, entry.decode(), partition))
        else:
            pulled.foreign.append(f"{lane} {entry.decode()}")
    return pulled
