"""The way in: deliveries are pulled, claimed, and made ready to run. Redis on one side, RunningJobs on the other.

Each stage keeps what it has until the next one has it, so an answer that is lost loses nothing: the next `take` goes on
where this one broke off, and asks Redis for deliveries that may have been ours without our knowing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex

import redis as sync_redis
import structlog

from producer import wire
from producer.calls import (
    Claim,
    Delivery,
    Held,
    ReclaimCursor,
    Resolution,
    claim,
    discard,
    expire,
    hand_back,
    pull,
    reclaim,
    resolve,
    run,
    run_many,
)
from producer.calls.script import Call
from producer.errors import NewerProtocol, Undecodable
from producer.keys import Keys
from producer.protocol import Failure, Job
from worker.jobs import PRIORITY, JobRefused, Refusal, Resolved, RunningJob, decide
from worker.partitions import Partitions
from worker.text import TextModel

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Pulled:
    """A delivery to be claimed; a claim whose answer is lost is made again with the same nonce."""

    delivery: Delivery
    reclaimed: bool
    nonce: str = field(default_factory=lambda: token_hex(8))


@dataclass
class Taken:
    """What one `take` brought: jobs to run (some complete already), and jobs that can't."""

    jobs: list[RunningJob] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


class Inbox:
    """Deliveries on their way to becoming RunningJobs, for one worker."""

    def __init__(
        self,
        redis: sync_redis.Redis,
        partitions: Partitions,
        consumer: str,
        text: TextModel,
        served_name: str,
        max_len: int,
        max_strikes: int = 4,
        max_deliveries: int = 50,
    ) -> None:
        """max_len: longest job, prompt and answer, in tokens. Past strikes or deliveries a job is dead-lettered."""
        self._redis, self._partitions, self._consumer = redis, partitions, consumer
        self._text, self._served_name, self._max_len = text, served_name, max_len
        self._started = wire.encode_started(consumer, served_name)
        self._max_strikes, self._max_deliveries = max_strikes, max_deliveries
        self._pulled: list[_Pulled] = []
        self._claimed: list[Claim] = []
        self._cursors = {keys.partition: ReclaimCursor() for keys in partitions}
        self._to_search: list[Keys] = []  # partitions in which this round of reclaims has not come to the end
        self._reply_lost: set[int] = set()  # partitions in which we may hold what we don't know of
        self._ids = count()
        self.counts = dict.fromkeys(("reclaimed", "resumed", "late", "broken", "dead", "refused", "foreign"), 0)

    @property
    def held(self) -> list[Held]:
        """What is ours and not yet a RunningJob."""
        return [*(Held(p.delivery, None) for p in self._pulled), *(Held(c.delivery, c.epoch) for c in self._claimed)]

    def pull(self, room: int, held: Collection[Delivery]) -> int:
        """Take at most `room` more deliveries; how many came. `held`: all this worker holds elsewhere.

        Raises redis.RedisError.
        """
        before = len(self._pulled)
        for keys in self._partitions.in_turn():
            if room > (came := len(self._pulled) - before):
                self._pull(keys, room - came, held)
        return len(self._pulled) - before

    def _pull(self, keys: Keys, room: int, held: Collection[Delivery]) -> None:
        known: list[Delivery] | None = None
        if keys.partition in self._reply_lost:
            all_held = (*held, *(item.delivery for item in self.held))
            known = [delivery for delivery in all_held if delivery.partition == keys.partition]
        self._reply_lost.add(keys.partition)
        pulled = run(self._redis, pull(keys, self._consumer, room, fingerprint=self._text.fingerprint, held=known))
        self._reply_lost.remove(keys.partition)
        self._note_foreign(pulled.foreign)
        self._pulled += [_Pulled(delivery, reclaimed=False) for delivery in pulled.deliveries]

    def reclaim(self, lease_s: float, room: int, held: Collection[Delivery] = ()) -> bool:
        """Take over at most `room` deliveries whose owner has not renewed; whether all lanes have been looked at.

        `held`: all this worker holds elsewhere; what it was itself too late to renew is its own again.
        Raises redis.RedisError.
        """
        self._to_search = self._to_search or self._partitions.in_turn()
        before = len(self._pulled)
        while self._to_search and room > (came := len(self._pulled) - before):
            keys = self._to_search[0]
            if not self._reclaim(keys, lease_s, room - came, held):
                return False
            self._to_search.pop(0)
        return not self._to_search

    def _reclaim(self, keys: Keys, lease_s: float, room: int, held: Collection[Delivery]) -> bool:
        """`reclaim`, of one partition."""
        cursor, was_lost = self._cursors[keys.partition], keys.partition in self._reply_lost
        self._reply_lost.add(keys.partition)
        found = run(self._redis, reclaim(keys, self._consumer, round(lease_s * 1000), cursor, room))
        if not was_lost:
            self._reply_lost.remove(keys.partition)
        self._cursors[keys.partition] = found.cursor
        self._note_foreign(found.foreign)
        own = {*held, *(item.delivery for item in self.held)}
        taken_over = [delivery for delivery in found.deliveries if delivery not in own]
        self._pulled += [_Pulled(delivery, reclaimed=True) for delivery in taken_over]
        for delivery in taken_over:
            self.counts["reclaimed"] += 1
            log.warning("reclaimed", job=delivery.job_id, reason="its worker has not renewed its lease")
        return found.cursor.at_start

    def take(self) -> Taken:
        """Claim what was pulled and make it ready. Raises redis.RedisError; call again then."""
        if self._pulled:
            self._claim()
        taken = Taken()
        ready = list(self._decided(taken))
        resolutions = run_many(self._redis, [self._resolve_call(c, blob) for c, blob in ready]) if ready else []
        for (claimed, _), answer in zip(ready, resolutions, strict=True):
            if isinstance(answer, Resolution) and answer.status == "mismatch":
                log.info("handed_back", job=claimed.delivery.job_id, reason="begun by another model")
                self._hand_back(claimed, answer.fingerprint or "")
        self._claimed.clear()
        for (claimed, _), answer in zip(ready, resolutions, strict=True):
            if isinstance(answer, Resolution) and answer.status == "ok" and answer.blob is not None:
                self._admit(claimed, answer.blob, taken)
        return taken

    def _claim(self) -> None:
        """Become the owner of what was pulled; what is too late or no job of ours is ended on the way."""
        consumer, started, keys_of = self._consumer, self._started, self._partitions.of
        calls = [
            claim(keys_of(p.delivery), p.delivery, consumer, started, reclaimed=p.reclaimed, nonce=p.nonce)
            for p in self._pulled
        ]
        claims = [answer for answer in run_many(self._redis, calls) if isinstance(answer, Claim)]
        for claimed in claims:
            if claimed.status == "late":
                self.counts["late"] += 1
                log.info("job_expired", job=claimed.delivery.job_id, reason="its deadline passed while it was queued")
                run(self._redis, expire(keys_of(claimed.delivery), claimed.delivery.job_id))
            elif claimed.status == "broken":
                self.counts["broken"] += 1
                log.error("job_broken", job=claimed.delivery.job_id, error=claimed.why, next="it becomes a dead letter")
                run(self._redis, discard(keys_of(claimed.delivery), claimed.delivery, claimed.why))
        self._claimed += [claimed for claimed in claims if claimed.status == "ok"]
        self._pulled.clear()

    def _admit(self, claimed: Claim, blob: bytes, taken: Taken) -> None:
        """Make a claimed and resolved job ready. What can't be read of it is that job's trouble alone."""
        try:
            taken.jobs.append(self._running(claimed, Resolved.unpack(blob)))
        except (Undecodable, ValueError, TypeError) as error:
            self._refuse(
                claimed, "unreadable", f"what an earlier worker left of this job can't be read: {error}", taken
            )

    def _decided(self, taken: Taken) -> Iterator[tuple[Claim, bytes]]:
        """Each claim with what is decided about it, packed; those that can't run go to `taken.refused`."""
        for claimed in self._claimed:
            if (dead := self._dead(claimed)) is not None:
                taken.refused.append(dead)
                continue
            if claimed.offset and claimed.fingerprint not in (None, self._text.fingerprint):
                log.info("handed_back", job=claimed.delivery.job_id, reason="begun by another model")
                self._hand_back(claimed, claimed.fingerprint or "")
                continue
            try:
                yield claimed, self._decide(claimed).pack()
            except NewerProtocol as error:
                log.warning("handed_back", job=claimed.delivery.job_id, reason=str(error))
                self._hand_back(claimed, f"protocol-{error.version}")
            except (JobRefused, Undecodable) as error:
                self._refuse(claimed, error.code if isinstance(error, JobRefused) else "undecodable", str(error), taken)
            except Exception as error:  # a tokenizer's or a template's surprise: this job ends, its neighbours don't
                log.exception("job_surprised_us", job=claimed.delivery.job_id)
                self._refuse(claimed, "internal", f"{type(error).__name__}: {error}", taken)

    def _dead(self, claimed: Claim) -> Refusal | None:
        """The end of a job that has cost too many workers, or gone through too many hands."""
        if claimed.strikes >= self._max_strikes:
            why, message = "strikes", f"{claimed.strikes} workers were lost over this job; it is kept as a dead letter"
        elif claimed.deliveries > self._max_deliveries:
            times = claimed.deliveries - 1
            why, message = "deliveries", f"{times} workers took this job and none ended it; it is kept as a dead letter"
        else:
            return None
        self.counts["dead"] += 1
        log.error("job_dead", job=claimed.delivery.job_id, why=why, error=message)
        events = [wire.decode_tokens(blob, claimed.offset) for blob in claimed.tokens]
        return Refusal(
            claimed.delivery,
            claimed.epoch,
            claimed.offset,
            Failure(code=why, message=message),
            why=why,
            token_ids=tuple(token for event in events for token in event.token_ids),
            text="".join(event.text for event in events),
            logprobs=tuple(one for event in events for one in event.logprobs or ()) or None,
        )

    def _refuse(self, claimed: Claim, code: str, message: str, taken: Taken) -> None:
        self.counts["refused"] += 1
        log.warning("job_refused", job=claimed.delivery.job_id, code=code, error=message)
        taken.refused.append(
            Refusal(claimed.delivery, claimed.epoch, claimed.offset, Failure(code=code, message=message))
        )

    def _decide(self, claimed: Claim) -> Resolved:
        if claimed.resolved is not None and claimed.fingerprint == self._text.fingerprint:
            return Resolved.unpack(claimed.resolved)
        return decide(self._job(claimed), self._text, self._served_name, self._max_len)

    def _job(self, claimed: Claim) -> Job:
        if claimed.payload is None:
            raise JobRefused("payload_lost", "the job's payload is gone from Redis; submit it again")
        return wire.decode_job(claimed.payload, claimed.delivery.job_id)

    def _resolve_call(self, claimed: Claim, blob: bytes) -> Call[Resolution]:
        job_id, epoch = claimed.delivery.job_id, claimed.epoch
        keys = self._partitions.of(claimed.delivery)
        return resolve(keys, job_id, epoch, self._consumer, blob, self._text.fingerprint)

    def _running(self, claimed: Claim, resolved: Resolved) -> RunningJob:
        job = RunningJob(
            sequence_id=self.next_id(),
            delivery=claimed.delivery,
            epoch=claimed.epoch,
            lane_priority=PRIORITY[claimed.delivery.lane],
            resolved=resolved,
            stream=self._text.stream(resolved.prompt_ids, resolved.stop, resolved.min_tokens),
            queued_s=max(0.0, (claimed.claimed_at_ms - claimed.queued_at_ms) / 1000),
            strikes=claimed.strikes,
            time_left_s=(claimed.deadline_ms - claimed.claimed_at_ms) / 1000 if claimed.deadline_ms else math.inf,
        )
        if claimed.offset:
            job.resume(claimed)
            self.counts["resumed"] += 1
            log.info("resumed", job=job.job_id, offset=claimed.offset, deliveries=claimed.deliveries)
        return job

    def next_id(self) -> int:
        """A number no sequence has had."""
        return next(self._ids)

    def _hand_back(self, claimed: Claim, fingerprint: str) -> None:
        keys, held = self._partitions.of(claimed.delivery), [Held(claimed.delivery, claimed.epoch)]
        run(self._redis, hand_back(keys, self._consumer, held, fingerprint))

    def _note_foreign(self, foreign: list[str]) -> None:
        for entry in foreign:
            self.counts["foreign"] += 1
            log.warning("foreign_entry_removed", entry=entry, reason="an entry of a lane has a field j, the job's id")
