"""The audit: does every accepted job have one whole, right answer, and did each reader see just that?

In: `Evidence`, what was accepted, what readers saw, what lies in Redis in the end, and the answers of an undisturbed
run. Out: `Finding`s, each a kind, a job and a sentence; none where the promise was kept. Only `collect` and `leftovers`
look into Redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis as sync_redis

from ops.chaos.reference import Answer
from producer import wire
from producer.calls import JobStatus, run, status
from producer.errors import SlipstreamError
from producer.keys import GROUP, Keys
from producer.protocol import Ended, Event, FinishReason, Resync, Started, Tokens, running_hash

KINDS = (
    "lost",  # accepted, and gone or never ended
    "unshown",  # lost, and its reader was not told
    "two_ends",
    "gap",
    "repeat",
    "wrong",  # other tokens, other text, another end than it must have
    "dead",
    "reader",  # it saw something else than what the stream says
    "pending",  # entries left on the lanes
    "leak",  # keys without a time to live that no queue owns
    "takeover",  # of a job whose worker lived, in an outage of Redis
    "worker",  # a process that died by itself, or complained
)
NATURAL = ("stop", "length")

Entry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    kind: str
    job: str
    what: str


@dataclass
class Seen:
    """What one reader made of a job's events, as a service would: it appends, and drops where it is told to."""

    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    hash: int | None = None
    """Of its last tokens event."""
    ended: Ended | None = None
    ended_at: float | None = None
    arrivals: list[float] = field(default_factory=list)
    """When tokens or the end came, in Unix seconds."""
    away: list[tuple[float, float]] = field(default_factory=list)
    resyncs: int = 0
    lost: str | None = None
    """The error by which it learned that the job is gone."""
    broken: str | None = None
    """What contradicted what it had."""

    def take(self, event: Event, now: float) -> None:
        """Take in the next event."""
        match event:
            case Tokens():
                if event.start != len(self.token_ids):
                    self.broken = f"tokens {event.start} to {event.offset} came when it had {len(self.token_ids)}"
                self.token_ids += event.token_ids
                self.pieces += event.pieces
                self.hash = event.hash
                self.arrivals.append(now)
            case Resync():
                self.resyncs += 1
                del self.token_ids[event.offset :], self.pieces[event.offset :]
                self.hash = running_hash(0, self.token_ids) if self.token_ids else None
            case Ended():
                self.ended, self.ended_at = event, now
                self.arrivals.append(now)
                if event.offset != len(self.token_ids):
                    self.broken = f"the end came at {event.offset} when it had {len(self.token_ids)}"
            case Started():
                pass


@dataclass
class Ask:
    """What a producer did with a job, in Unix seconds."""

    accepted_at: float
    cancelled: bool = False
    """A cancel met it alive."""
    cancel_asked: bool = False
    has_deadline: bool = False
    twice: bool = False
    """It is submitted a second time, which makes a loss good."""


@dataclass
class InRedis:
    """What lies in Redis of one job."""

    status: JobStatus | None
    entries: Sequence[Entry]
    result: bytes | None


@dataclass(frozen=True)
class Cut:
    """A death of Redis that may have taken back what was written from `since` to `at` (Unix seconds)."""

    since: float
    at: float


@dataclass
class Evidence:
    """All that the audit goes by."""

    asked: Mapping[str, Ask]
    seen: Mapping[str, Seen]
    found: Mapping[str, InRedis]
    answers: Mapping[str, Answer]
    cuts: Sequence[Cut] = ()
    """Empty where Redis promises to lose nothing."""


@dataclass
class Verdict:
    """What the audit found, and what may be and was counted."""

    findings: list[Finding]
    lost_and_shown: int = 0
    ends_taken_back: int = 0
    """Ends that a reader was told and that a death of Redis took back within its bound."""
    reasons: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    resyncs: int = 0

    def count(self, kind: str) -> int:
        """Findings of a kind."""
        return sum(finding.kind == kind for finding in self.findings)


def judge(evidence: Evidence) -> Verdict:
    """Judge every accepted job."""
    verdict = Verdict([])
    for job_id, ask in evidence.asked.items():
        findings = list(_judge_job(job_id, ask, evidence, verdict))
        verdict.findings += findings
    verdict.resyncs = sum(seen.resyncs for seen in evidence.seen.values())
    return verdict


def _judge_job(job_id: str, ask: Ask, evidence: Evidence, verdict: Verdict) -> Iterable[Finding]:
    there, seen = evidence.found[job_id], evidence.seen[job_id]
    if there.status is None:
        yield from _judge_lost(job_id, ask, seen, evidence.cuts, verdict)
        return
    stream = replay(job_id, there.entries)
    yield from stream.findings
    if stream.ended is None:
        yield Finding("lost", job_id, f"never ended: it is {there.status.state} at {len(stream.token_ids)} tokens")
        return
    verdict.tokens += len(stream.token_ids)
    verdict.reasons[stream.ended.reason] = verdict.reasons.get(stream.ended.reason, 0) + 1
    yield from _judge_answer(job_id, ask, stream, evidence.answers[job_id], evidence.cuts)
    yield from _judge_result(job_id, there, stream)
    yield from _judge_reader(job_id, ask, seen, stream, evidence.cuts, verdict)


def _judge_lost(job_id: str, ask: Ask, seen: Seen, cuts: Sequence[Cut], verdict: Verdict) -> Iterable[Finding]:
    if not _is_within(ask.accepted_at, cuts):
        yield Finding("lost", job_id, f"accepted at {ask.accepted_at:.3f}, and Redis does not know it")
    elif seen.lost is None and seen.ended is None:
        yield Finding("unshown", job_id, "lost with the latest second, and its reader was not told")
    else:
        verdict.lost_and_shown += 1


def _is_within(at: float | None, cuts: Sequence[Cut]) -> bool:
    """Whether a death of Redis may have taken back what happened then."""
    return at is not None and any(cut.since <= at <= cut.at for cut in cuts)


@dataclass
class Replayed:
    """A stream read from its first entry to its last."""

    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    ended: Ended | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def replay(job_id: str, entries: Sequence[Entry]) -> Replayed:
    """Read a job's stream, and find what is missing in it, twice in it, or behind its end."""
    stream, digest = Replayed(), 0

    def finding(kind: str, what: str) -> None:
        stream.findings.append(Finding(kind, job_id, what))

    for entry, fields in entries:
        try:
            event = wire.decode_event(entry, fields)
        except SlipstreamError as error:
            finding("wrong", f"{entry.decode()}: {error}")
            continue
        if stream.ended is not None:
            finding("two_ends" if isinstance(event, Ended) else "repeat", f"{entry.decode()} stands behind the end")
        at = event.start if isinstance(event, Tokens) else event.offset
        if at != len(stream.token_ids):
            kind = "gap" if at > len(stream.token_ids) else "repeat"
            finding(kind, f"{entry.decode()} goes on at {at}, after {len(stream.token_ids)} tokens")
        if isinstance(event, Tokens):
            stream.token_ids += event.token_ids
            stream.pieces += event.pieces
            digest = running_hash(digest, event.token_ids)
            if digest != event.hash:
                finding("wrong", f"{entry.decode()}: its hash is not that of the tokens so far")
        elif isinstance(event, Ended):
            stream.ended = event
    return stream


def _judge_answer(job_id: str, ask: Ask, stream: Replayed, answer: Answer, cuts: Sequence[Cut]) -> Iterable[Finding]:
    assert stream.ended is not None
    reason: FinishReason = stream.ended.reason
    ids, text = tuple(stream.token_ids), stream.text
    if reason in NATURAL:
        if ids != answer.token_ids:
            at = next((i for i, pair in enumerate(zip(ids, answer.token_ids, strict=False)) if pair[0] != pair[1]), -1)
            yield Finding(
                "wrong", job_id, f"{len(ids)} tokens, not the undisturbed {len(answer.token_ids)}; differ at {at}"
            )
        elif (text, reason) != (answer.text, answer.reason):
            yield Finding(
                "wrong", job_id, f"{reason} with {text[-40:]!r}, not {answer.reason} with {answer.text[-40:]!r}"
            )
        if ask.cancelled and not cuts:
            yield Finding("wrong", job_id, f"a cancel met it alive, and it ended as {reason}")
        return
    if reason == "dead":
        yield Finding("dead", job_id, f"dead-lettered: {stream.ended.error}")
    elif not ((reason == "cancelled" and ask.cancel_asked) or (reason == "expired" and ask.has_deadline)):
        yield Finding("wrong", job_id, f"ended as {reason}, which nobody asked for: {stream.ended.error}")
    if ids != answer.token_ids[: len(ids)] or not answer.text.startswith(text):
        yield Finding("wrong", job_id, f"its {len(ids)} tokens before it was {reason} are not the undisturbed ones")


def _judge_result(job_id: str, there: InRedis, stream: Replayed) -> Iterable[Finding]:
    """The stored result says what the stream says."""
    assert stream.ended is not None
    if there.result is None:
        if stream.ended.reason in NATURAL:
            yield Finding("lost", job_id, "it has ended, and there is no result")
        return
    result = wire.decode_result(there.result, job_id)
    ours = (tuple(stream.token_ids), stream.text, stream.ended.reason)
    if (result.token_ids, result.text, result.finish_reason) != ours:
        yield Finding("wrong", job_id, f"its result ({result.finish_reason}) is not what its stream says")


def _judge_reader(
    job_id: str, ask: Ask, seen: Seen, stream: Replayed, cuts: Sequence[Cut], verdict: Verdict
) -> Iterable[Finding]:
    if seen.broken is not None:
        yield Finding("reader", job_id, seen.broken)
    if seen.lost is not None and ask.twice and _is_within(ask.accepted_at, cuts):
        verdict.lost_and_shown += 1
        return
    if seen.ended is None:
        told = f", and was told {seen.lost}" if seen.lost else ""
        yield Finding("reader", job_id, f"saw no end, at {len(seen.token_ids)} tokens{told}")
        return
    same = seen.token_ids == stream.token_ids and seen.pieces == stream.pieces
    assert stream.ended is not None
    if same and seen.ended.reason == stream.ended.reason:
        return
    if _is_within(seen.ended_at, cuts):
        verdict.ends_taken_back += 1
        return
    yield Finding(
        "reader",
        job_id,
        f"saw {len(seen.token_ids)} tokens and {seen.ended.reason}, the stream has {len(stream.token_ids)} and "
        f"{stream.ended.reason}",
    )


def collect(redis: sync_redis.Redis, keys: Keys, jobs: Iterable[str]) -> dict[str, InRedis]:
    """What lies in Redis of these jobs."""
    found = {}
    for job_id in jobs:
        entries: Any = redis.xrange(keys.tokens(job_id))
        result: Any = redis.get(keys.result(job_id))
        found[job_id] = InRedis(run(redis, status(keys, job_id)), entries, result)
    return found


def leftovers(redis: sync_redis.Redis, keys: Keys) -> list[Finding]:
    """Entries on the lanes, and keys that would stay for ever, once all jobs have ended."""
    findings = []
    for lane in keys.lanes:
        length: Any = redis.xlen(lane)
        groups: Any = redis.xinfo_groups(lane) if length or redis.exists(lane) else []
        pending = sum(group["pending"] for group in groups if group["name"] == GROUP.encode())
        if length or pending:
            findings.append(Finding("pending", "", f"{lane}: {length} entries, {pending} pending"))
    if letters := redis.xlen(keys.dead):
        findings.append(Finding("dead", "", f"{letters} dead letters"))
    lasting = {*keys.lanes, keys.control, keys.workers}
    for key in redis.scan_iter(count=1000):
        if key.decode() not in lasting and redis.ttl(key) == -1:
            findings.append(Finding("leak", "", f"{key.decode()} has no time to live and no queue owns it"))
    return findings
