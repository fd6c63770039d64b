"""Where a schedule happens: one partition of a Redis, three workers, their readers, and the book of what is so.

`run` is how every call is made: now and then twice, since its first reply may be lost on the way.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any

from redis.exceptions import ResponseError

from producer import calls, wire
from producer.calls import Call, Delivery, Publication, ReclaimCursor
from producer.calls.script import Script
from producer.cursor import EventCursor
from producer.errors import SlipstreamError, Undecodable
from producer.keys import GROUP, Keys
from producer.protocol import FinishReason, Result, running_hash
from tests.producer.fuzz.truth import JobTruth, Truth, right

WORKERS = ("A", "B", "C")
TENANTS = ("default", "anna", "bert")
WAITING, READY, RUNNING = 6, 7, 8  # places in Keys.about
Breaking = Callable[[Script], Script]


@dataclass
class Work:
    """A claimed job as its worker sees it, right or wrong."""

    delivery: Delivery
    epoch: int
    offset: int
    strikes: int
    claimed_offset: int

    @property
    def is_suspect(self) -> bool:
        """Whether it has to run alone."""
        return self.strikes > 0 and self.offset <= self.claimed_offset


@dataclass
class Worker:
    """What a worker has in memory."""

    works: dict[str, Work] = field(default_factory=dict)
    unclaimed: list[tuple[Delivery, bool]] = field(default_factory=list)
    """Deliveries, and whether they were taken from one whose lease had run out."""
    alone: str | None = None
    """The job that runs alone."""
    reply_lost: bool = False
    cursor: ReclaimCursor = field(default_factory=ReclaimCursor)

    @property
    def held(self) -> list[Delivery]:
        return [*(delivery for delivery, _ in self.unclaimed), *(work.delivery for work in self.works.values())]

    def runs(self, job_id: str) -> bool:
        """Whether its engine has this job: a suspect only alone, others only beside no suspect that runs alone."""
        alone = self.works.get(self.alone or "")
        if alone is not None and alone.is_suspect:
            return job_id == self.alone
        return not self.works[job_id].is_suspect


class World:
    """Everything of one schedule. What is random in it comes from `chance`, which each act is given anew."""

    def __init__(self, redis: Any, seed: int, breaking: Breaking | None = None) -> None:
        self.redis, self.keys, self.breaking = redis, Keys("fuzz"), breaking
        self.chance = random.Random(seed)
        self.truth = Truth()
        self.workers = {name: Worker() for name in WORKERS}
        self.zombies: list[tuple[str, Work]] = []
        self.sent: list[tuple[str, list[Publication], Call[Any]]] = []
        self.readers: dict[str, EventCursor] = {}
        self.read: dict[str, list[int]] = {}
        self.told: dict[str, str] = {}
        self.torn: set[str] = set()
        """Jobs whose events someone deleted."""
        self.submitted = 0
        self.sweep_cursor = 0
        self.backup: tuple[dict[bytes, tuple[bytes, int]], Truth] | None = None
        self.failed_over = False
        self.log: list[str] = []
        # Epochs far above the clock count up by one, so that a failover makes the same number come twice.
        self.first_epoch = self.chance.choice([0, 9_000_000_000_000])
        self.max_strikes = self.chance.choice([2, 3, 4])
        self.set("tenant_window", self.chance.choice(["1", "2", "2", "1000"]))
        for name, values in {"tenant_running": "123", "tenant_queued": "23", "max_depth": "58"}.items():
            if self.chance.random() < 0.3:
                self.set(name, self.chance.choice(values))

    # Calls.

    def run(self, call: Call[Any]) -> Any:
        """Run a call, now and then twice: the first reply was lost on the way and the same call is sent again."""
        if self.chance.random() < 0.02:
            self.redis.script_flush()
        answer = self.answer(call)
        if self.chance.random() < 0.15:
            again = self.answer(call)
            self.note(f"  sent again: {answer} -> {again}")
            _fits(call.script.name, answer, again)
        return answer

    def answer(self, call: Call[Any]) -> Any:
        """Run a call once. An error of ours, or of a key that holds something else, is an answer too."""
        if self.breaking is not None:
            call = dataclasses.replace(call, script=self.breaking(call.script))
        try:
            return calls.run(self.redis, call)
        except SlipstreamError as error:
            return error
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            return Undecodable("job", str(error))

    def note(self, line: str) -> None:
        self.log.append(line)

    def set(self, field_name: str, value: str | None) -> None:
        """An operator sets something in the partition's control, or takes it away."""
        if value is None:
            self.truth.control.pop(field_name, None)
            self.redis.hdel(self.keys.control, field_name)
        else:
            self.truth.control[field_name] = value
            self.redis.hset(self.keys.control, field_name, value)

    # What is so.

    def job(self, job_id: str) -> JobTruth:
        return self.truth.jobs[job_id]

    def some_job(self, wanted: Callable[[JobTruth], bool]) -> JobTruth | None:
        """A job of that kind, by chance."""
        found = [job for job in self.truth.jobs.values() if wanted(job)]
        return self.chance.choice(found) if found else None

    def leads_to(self, delivery: Delivery) -> bool:
        """Whether the job names this entry as its own."""
        with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hmget(self.keys.job(delivery.job_id), "lane", "entry")
            pipeline.hget(self.keys.about(delivery.job_id)[READY], delivery.job_id)
            named, ready = pipeline.execute(raise_on_error=False)
        if isinstance(named, ResponseError):
            return False
        lane, entry = named
        return (lane, entry or ready) == (delivery.lane.encode(), delivery.entry.encode())

    def pending_at(self, delivery: Delivery) -> str | None:
        """The consumer whose entry it is, as Redis has it; None where it is nobody's."""
        lane, entry = self.keys.lane(delivery.lane), delivery.entry
        try:
            pending = self.redis.xpending_range(lane, GROUP, entry, entry, 1)
        except ResponseError:  # the lane is lost, and its group with it
            return None
        return pending[0]["consumer"].decode() if pending else None

    def tail(self, job_id: str) -> int | None:
        """Tokens in its events; None where they are no stream."""
        try:
            last = self.redis.xrevrange(self.keys.tokens(job_id), count=1)
        except ResponseError:
            return None
        return int(last[0][0].partition(b"-")[2]) if last else 0

    def judge(self, name: str, work: Work, status: str) -> None:
        """The owner, and nobody else, is let in."""
        job = self.job(work.delivery.job_id)
        owner = job.owner if job.is_live else None
        assert (status != "fenced") == (owner == (name, work.epoch)), f"{status} for {name}, the owner is {owner}"
        assert (status == "broken") == (job.harm == "events" and status != "fenced"), status

    def drop(self, name: str, job_id: str) -> None:
        """A worker drops a job, or dies; what it knew may still act on Redis later."""
        work = self.workers[name].works.pop(job_id, None)
        if work is not None:
            self.zombies.append((name, work))

    def discard(self, delivery: Delivery, why: str, *, only_if_wrong: bool = False) -> None:
        """What is left of a job with broken keys becomes a dead letter, once."""
        job = self.job(delivery.job_id)
        done = self.answer(calls.discard(self.keys, delivery, why, only_if_wrong=only_if_wrong))
        assert done, "nothing was broken"
        assert job.harm in ("hash", "events"), "a job was discarded that nobody has broken"
        self.truth.letters.append((delivery.job_id, "broken"))
        job.end("dead")
        if job.harm == "events":
            job.harm = None
        if self.chance.random() < 0.3:
            self.answer(calls.discard(self.keys, delivery, why, only_if_wrong=only_if_wrong))


def _fits(script: str, answer: Any, again: Any) -> None:
    """Whether the answer to a call that was sent again is right beside the first one."""
    if isinstance(answer, Exception):
        assert type(again) is type(answer), f"{answer!r}, then {again!r}"
    elif script in ("publish", "finish"):
        pairs = zip(answer, again, strict=True) if isinstance(answer, list) else [(answer, again)]
        for first, second in pairs:
            expected = {"ok": ("ok", "already")}.get(first.status, (first.status,))
            assert second.status in expected, (first, second)
            assert second.offset == first.offset
    elif script == "enqueue":
        assert again.duplicate, "the same job was accepted twice"
    else:
        assert again == answer, f"a re-sent {script} got another answer: {answer}, then {again}"


def blob(job_id: str, start: int, ids: list[int]) -> bytes:
    return wire.encode_tokens(ids, [""] * len(ids), running_hash(0, right(job_id, 0, start + len(ids))))


def finish_call(
    keys: Keys, work: Work, name: str, stop: int, reason: FinishReason = "stop"
) -> Call[calls.PublishReply]:
    """A worker's end of a job, with its tokens from where it stands to `stop`."""
    job_id = work.delivery.job_id
    ids = right(job_id, work.offset, stop)
    result = Result(job_id=job_id, finish_reason=reason, text="", token_ids=tuple(right(job_id, 0, stop)))
    return calls.finish(
        keys,
        work.delivery,
        name,
        work.epoch,
        start=work.offset,
        count=len(ids),
        tokens=blob(job_id, work.offset, ids) if ids else None,
        ended=wire.encode_ended(reason),
        result=wire.encode_result(result),
        reason=reason,
        why="strikes" if reason == "dead" else "",
    )


def broken_by(old: str, new: str) -> Breaking:
    """Scripts with a text in them replaced."""
    made: dict[str, Script] = {}

    def breaking(script: Script) -> Script:
        if script.name not in made:
            text = script.text.replace(old, new)
            made[script.name] = Script(script.name, text, sha1(text.encode()).hexdigest())
        return made[script.name]

    return breaking
