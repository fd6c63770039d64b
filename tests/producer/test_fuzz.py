"""Random schedules over the real scripts: three workers, leases that may be over at any moment, replies that get lost.

A schedule is a seed. A book beside Redis (`Truth`) says who owns each job by what the scripts have answered; each reply
is held against it, and at the end every job's events are read to the token. SLIPSTREAM_FUZZ_SEEDS: how many seeds run.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any

import fakeredis
import pytest

from producer import calls, wire
from producer.calls import Call, Claim, Delivery, Held, Publication, ReclaimCursor
from producer.calls.script import Script, script
from producer.cursor import EventCursor
from producer.keys import Keys
from producer.protocol import Job, Result, running_hash

SEEDS = int(os.environ.get("SLIPSTREAM_FUZZ_SEEDS", "300"))
BLOCK = 25
LANES = ("high", "normal", "low")
READY = 7  # of Keys.about: where a job's entry stands until it is claimed


def token(job_id: str, offset: int) -> int:
    """The one right token of a job at an offset."""
    return (int(job_id[-8:]) * 7919 + offset * 104_729) % 50_000


def right(job_id: str, start: int, stop: int) -> list[int]:
    return [token(job_id, offset) for offset in range(start, stop)]


@dataclass
class Work:
    """A claimed job as its worker sees it, right or wrong."""

    delivery: Delivery
    epoch: int
    offset: int


@dataclass
class Truth:
    """What is so, by the answers given."""

    owner: dict[str, tuple[str, int] | None] = field(default_factory=dict)
    holder: dict[str, str | None] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    length: dict[str, int] = field(default_factory=dict)


class Schedule:
    """One seed's walk. Everything random comes from `chance`, so a seed is a schedule."""

    def __init__(self, redis: Any, seed: int, breaking: Callable[[Call[Any]], Call[Any]] | None = None) -> None:
        self.breaking = breaking
        self.redis, self.keys, self.chance = redis, Keys("fuzz"), random.Random(seed)
        self.truth = Truth()
        self.workers: dict[str, dict[str, Work]] = {name: {} for name in "ABC"}
        self.unclaimed: dict[str, list[Delivery]] = {name: [] for name in "ABC"}
        self.recover: set[str] = set()
        self.cursors = {name: ReclaimCursor() for name in "ABCZ"}
        self.readers: dict[str, EventCursor] = {}
        self.read: dict[str, list[int]] = {}
        self.told: dict[str, str] = {}
        self.zombies: list[tuple[str, Work]] = []
        self.sent: list[tuple[str, list[Publication], Call[Any]]] = []
        self.log: list[str] = []
        self.submitted = 0
        self.length: dict[str, int] = {}
        self.backup: tuple[dict[bytes, tuple[bytes, int]], Truth] | None = None
        self.failed_over = False
        # Epochs far above the clock count up by one, so that a failover makes the same number come twice.
        self.first_epoch = self.chance.choice([0, 9_000_000_000_000])

    def run(self, call: Call[Any]) -> Any:
        """Run a call, now and then twice: the first reply was lost on the way and the same call is sent again."""
        if self.chance.random() < 0.02:
            self.redis.script_flush()
        answer = self.answer(call)
        if self.chance.random() < 0.15:
            again = self.answer(call)
            self.note(f"  sent again: {answer} -> {again}")
            if call.script.name in ("publish", "finish"):
                self.same_or_already(answer, again)
            elif call.script.name == "enqueue":
                assert again.duplicate
            else:
                assert again == answer, "a re-sent call got another answer"
        return answer

    def answer(self, call: Call[Any]) -> Any:
        return calls.run(self.redis, self.breaking(call) if self.breaking else call)

    def same_or_already(self, answer: Any, again: Any) -> None:
        pairs = zip(answer, again, strict=True) if isinstance(answer, list) else [(answer, again)]
        for first, second in pairs:
            expected = {"ok": ("ok", "already")}.get(first.status, (first.status,))
            assert second.status in expected, (first, second)
            assert second.offset == first.offset

    def note(self, line: str) -> None:
        self.log.append(line)

    # What can happen.

    def submit(self, _: str) -> None:
        job = Job(prompt="x", lane=self.chance.choice(LANES), id=f"0.default.job-{self.submitted:08d}")
        self.submitted += 1
        self.run(calls.enqueue(self.keys, job))
        self.redis.hset(self.keys.job(job.id), "epoch", self.first_epoch)
        self.truth.owner[job.id] = self.truth.holder[job.id] = None
        self.truth.length[job.id] = self.length[job.id] = self.chance.randint(0, 7)

    def copy(self, _: str) -> None:
        """Someone puts an entry of a job on a lane by hand."""
        if self.truth.length and self.chance.random() < 0.2:
            lane = self.chance.choice(self.keys.lanes)
            self.redis.xadd(lane, {"j": self.chance.choice(list(self.truth.length))})

    def pull(self, name: str) -> None:
        held = self.held(name) if name in self.recover else None
        room = self.chance.randint(1, 2)
        deliveries = self.answer(calls.pull(self.keys, name, room, held=held)).deliveries
        assert len(deliveries) <= room
        for delivery in deliveries:
            again = delivery in (held or ()) and self.truth.holder.get(delivery.job_id) == name
            assert not (again and self.leads_to(delivery)), "an entry was delivered to who has it"
        lost = self.chance.random() < 0.15
        self.recover.add(name) if lost else self.recover.discard(name)
        self.delivered(name, deliveries, lost)

    def reclaim(self, name: str) -> None:
        call = calls.reclaim(self.keys, name, 0, self.cursors[name], self.chance.randint(1, 2))
        reclaimed = self.answer(call)
        lost = self.chance.random() < 0.15
        self.cursors[name] = reclaimed.cursor
        self.delivered(name, reclaimed.deliveries, lost)

    def delivered(self, name: str, deliveries: list[Delivery], lost: bool) -> None:
        for delivery in deliveries:
            if self.leads_to(delivery):
                self.truth.holder[delivery.job_id] = name
        if not lost:
            self.unclaimed[name] += deliveries

    def claim(self, name: str) -> None:
        if not self.unclaimed[name]:
            return
        delivery = self.unclaimed[name].pop(0)
        before = int(self.redis.hget(self.keys.job(delivery.job_id), "epoch") or 0)
        claim = self.run(calls.claim(self.keys, delivery, name, wire.encode_started(name)))
        self.note(f"  {name} {delivery.job_id}: {claim.status} {claim.epoch} at {claim.offset}")
        assert claim.status != "ok" or claim.epoch > before, "a claim did not raise the epoch"
        self.claimed(name, claim)

    def claimed(self, name: str, claim: Claim) -> None:
        job_id = claim.delivery.job_id
        if claim.status == "gone":
            live = job_id in self.truth.length and job_id not in self.truth.ended
            assert not live or not self.leads_to(claim.delivery), "the entry of a live job was dropped"
            return
        assert self.leads_to(claim.delivery), "a copy of a job's entry led to the job"
        assert job_id not in self.truth.ended, "an ended job was claimed"
        assert (claim.status == "ok") == (self.truth.holder[job_id] == name), "claimed by who was not given it"
        if claim.status == "lost":
            return
        before = [token_id for blob in claim.tokens for token_id in wire.decode_tokens(blob, 10**6).token_ids]
        assert before == right(job_id, 0, claim.offset), "the claim brings other tokens than were published"
        self.truth.owner[job_id] = (name, claim.epoch)
        self.forget(name, job_id)
        self.workers[name][job_id] = Work(claim.delivery, claim.epoch, claim.offset)
        decided = self.run(calls.resolve(self.keys, job_id, claim.epoch, name, f"by {name}".encode(), "model"))
        assert decided.status == "ok"
        assert decided.blob == (claim.resolved or f"by {name}".encode()), "what was decided was decided again"

    def publish(self, name: str) -> None:
        works = list(self.workers[name].values())
        if not works:
            return
        items = [self.publication(work) for work in works]
        call = calls.publish(self.keys, name, items)
        replies = self.run(call)
        self.sent.append((name, items, call))
        lost = self.chance.random() < 0.15
        for work, item, reply in zip(works, items, replies, strict=True):
            self.note(f"  {name} {item.job_id} {item.start}+{item.count}: {reply.status} {reply.offset}")
            self.judge(name, work, reply.status)
            if lost:
                continue
            if reply.status == "fenced":
                self.forget(name, item.job_id)
            else:
                work.offset = reply.offset

    def forget(self, name: str, job_id: str) -> None:
        """A worker drops a job, or dies; what it knew may still act on Redis later."""
        work = self.workers[name].pop(job_id, None)
        if work is not None:
            self.zombies.append((name, work))

    def haunt(self, _: str) -> None:
        """A worker that lost a job long ago wakes up and goes on with it, in every way there is."""
        if not self.zombies:
            return
        name, work = self.chance.choice(self.zombies)
        job_id, held = work.delivery.job_id, Held(work.delivery, work.epoch)
        if self.truth.owner.get(job_id) == (name, work.epoch):
            return  # it dropped the job for no reason, or a failover gave it back: no zombie
        (reply,) = self.run(calls.publish(self.keys, name, [self.publication(work)]))
        assert reply.status == "fenced"
        ids = right(job_id, work.offset, self.length[job_id])
        assert self.run(finish(self.keys, work, name, ids)).status in ("fenced", "already")
        assert self.run(calls.resolve(self.keys, job_id, work.epoch, name, b"late", "model")).status == "fenced"
        assert self.run(calls.renew(self.keys, name, [held])) == [False]
        given = self.run(calls.hand_back(self.keys, name, [held]))
        assert given == [self.truth.holder.get(job_id) == "handoff" and self.leads_to(work.delivery)]

    def replay(self, _: str) -> None:
        """A publish of long ago arrives once more: a zombie's, or delayed on the way."""
        if not self.sent:
            return
        name, items, call = self.chance.choice(self.sent)
        for item, reply in zip(items, self.answer(call), strict=True):
            assert (reply.status != "fenced") == (self.truth.owner.get(item.job_id) == (name, item.epoch))
            assert item.count == 0 or reply.status != "ok" or self.failed_over, "old tokens went in twice"

    def publication(self, work: Work) -> Publication:
        job_id = work.delivery.job_id
        count = min(self.chance.randint(0, 3), self.length[job_id] - work.offset)
        ids = right(job_id, work.offset, work.offset + count)
        return Publication(job_id, work.epoch, work.offset, count, blob(job_id, work.offset, ids) if ids else None)

    def judge(self, name: str, work: Work, status: str) -> None:
        """The owner, and nobody else, is let in."""
        owner = self.truth.owner.get(work.delivery.job_id)
        assert (status != "fenced") == (owner == (name, work.epoch)), f"{status} for {name}, the owner is {owner}"

    def finish(self, name: str) -> None:
        for work in list(self.workers[name].values()):
            job_id = work.delivery.job_id
            if self.length[job_id] - work.offset > 2:
                continue
            ids = right(job_id, work.offset, self.length[job_id])
            reply = self.run(finish(self.keys, work, name, ids))
            self.note(f"  {name} {job_id} {work.offset}+{len(ids)}: {reply.status} {reply.offset}")
            if reply.status == "already":
                assert self.truth.ended.get(job_id) == f"{name} {work.epoch}"
            else:
                self.judge(name, work, reply.status)
            if reply.status == "ok":
                self.over(job_id, f"{name} {work.epoch}")
            if reply.status == "gap":
                work.offset = reply.offset
            elif self.chance.random() < 0.8:
                self.forget(name, job_id)

    def over(self, job_id: str, by: str) -> None:
        self.truth.owner[job_id] = self.truth.holder[job_id] = None
        self.truth.ended[job_id] = by

    def renew(self, name: str) -> None:
        held = [Held(work.delivery, work.epoch) for work in self.workers[name].values()]
        held += [Held(delivery, None) for delivery in self.unclaimed[name]]
        for item, kept in zip(held, self.run(calls.renew(self.keys, name, held)), strict=True):
            job_id = item.delivery.job_id
            if item.epoch is not None and kept:
                assert self.truth.owner.get(job_id) == (name, item.epoch), "the lease of another's job was renewed"
            if kept:
                assert self.truth.holder.get(job_id) == name or not self.leads_to(item.delivery)
            if item.epoch is not None and not kept:
                self.forget(name, job_id)

    def hand_back(self, name: str) -> None:
        for job_id, work in list(self.workers[name].items()):
            if self.chance.random() < 0.5:
                (given,) = self.run(calls.hand_back(self.keys, name, [Held(work.delivery, work.epoch)]))
                owns = self.truth.owner.get(job_id) == (name, work.epoch)
                holder = self.truth.holder.get(job_id)
                assert given == (holder == "handoff" or (owns and holder == name)), "handed back by who had it not"
                if owns and holder == name:
                    self.truth.owner[job_id], self.truth.holder[job_id] = None, "handoff"
                self.forget(name, job_id)

    def cancel(self, _: str) -> None:
        if self.truth.length and self.chance.random() < 0.3:
            job_id = self.chance.choice(list(self.truth.length))
            reply = self.run(calls.cancel(self.keys, job_id))
            assert (reply.met == "ended") == (job_id in self.truth.ended)
            if reply.met != "ended":
                self.over(job_id, "cancel")

    def kill(self, name: str) -> None:
        """kill -9: the worker's memory is gone, what is pending at it is not."""
        for job_id in list(self.workers[name]):
            self.forget(name, job_id)
        self.unclaimed[name].clear()
        self.recover.discard(name)

    def lose_group(self, _: str) -> None:
        lane = self.chance.choice(self.keys.lanes)
        if self.redis.exists(lane):
            self.redis.xgroup_destroy(lane, "workers")
            for job_id in self.truth.length:
                if self.redis.hget(self.keys.job(job_id), "lane") == lane.rpartition(":")[2].encode():
                    self.truth.holder[job_id] = None

    def back_up(self, name: str) -> None:
        """A replica gets this far."""
        if name == "now" or self.chance.random() < 0.3:
            keys = {key: (self.redis.dump(key), max(0, self.redis.pttl(key))) for key in self.redis.keys("*")}
            self.backup = keys, copy.deepcopy(self.truth)

    def fail_over(self, name: str) -> None:
        """The replica takes over: what came since is lost, but not to the workers and readers."""
        if self.backup is None or (name != "now" and self.chance.random() < 0.5):
            return
        keys, self.truth = self.backup[0], copy.deepcopy(self.backup[1])
        self.failed_over = True
        self.redis.flushall()
        for key, (value, ttl) in keys.items():
            self.redis.restore(key, ttl, value)
        for worker in "ABC":
            if self.chance.random() < 0.3:
                self.finish(worker)

    def look(self, _: str) -> None:
        """A reader comes by."""
        for job_id in self.truth.length:
            if self.chance.random() < 0.5:
                self.read_on(job_id)

    def split(self, name: str) -> None:
        """A claim is lost in a failover, and its number is given to another worker."""
        self.back_up("now")
        for worker in (name, self.chance.choice("ABC")):
            self.reclaim(worker)
            self.claim(worker)
            self.publish(worker)
            if worker == name:
                self.fail_over("now")

    # The walk.

    def walk(self) -> None:
        common = [self.pull, self.reclaim, self.claim, self.claim, self.claim, self.publish, self.publish, self.publish]
        often = [
            *common,
            *common,
            self.finish,
            self.finish,
            self.finish,
            self.renew,
            self.look,
            self.submit,
            self.submit,
        ]
        acts: list[Callable[[str], None]] = [
            *often,
            self.hand_back,
            self.cancel,
            self.kill,
            self.replay,
            self.copy,
            self.haunt,
            self.haunt,
        ]
        acts += [self.back_up, self.fail_over, self.split]
        self.submit("")
        for _ in range(self.chance.randint(20, 70)):
            act = self.lose_group if self.chance.random() < 0.01 else self.chance.choice(acts)
            name = self.chance.choice("ABC")
            self.note(f"{name} {act.__name__}")
            act(name)

    def drain(self) -> None:
        """The three die; a fourth comes and finishes everything."""
        for name in "ABC":
            self.kill(name)
        self.workers["Z"], self.unclaimed["Z"] = {}, []
        for _ in range(200):
            if not any(self.redis.xlen(lane) for lane in self.keys.lanes):
                return
            self.note("Z")
            self.delivered("Z", self.answer(calls.pull(self.keys, "Z", 4)).deliveries, lost=False)
            self.reclaim("Z")
            while self.unclaimed["Z"]:
                self.claim("Z")
            while self.workers["Z"]:
                self.publish("Z")
                self.finish("Z")
        raise AssertionError("jobs are left that nobody is given")

    def audit(self) -> None:
        """Each job: one end, every token once, in order and right; nothing is left behind."""
        for depth in self.answer(calls.depth(self.keys)).values():
            assert (depth.waiting, depth.running) == (0, 0), "an entry is left, or is pending without being there"
        for job_id, length in self.truth.length.items():
            self.read_on(job_id)
            assert self.readers[job_id].ended, f"{job_id} has no end for its reader"
            events = [wire.decode_event(*entry) for entry in self.redis.xrange(self.keys.tokens(job_id))]
            assert [event.kind for event in events].count("ended") == 1
            assert events[-1].kind == "ended", f"something follows the end of {job_id}"
            whole = [token_id for event in events if event.kind == "tokens" for token_id in event.token_ids]
            cancelled = self.truth.ended[job_id] == "cancel"
            assert whole == right(job_id, 0, len(whole) if cancelled else length), f"{job_id}: a gap or a repeat"
            seen = self.read.get(job_id, [])
            assert seen == right(job_id, 0, len(seen)), f"the reader of {job_id} saw a gap or a repeat"
            told_another_end = self.failed_over and self.told[job_id] != events[-1].reason
            assert len(seen) == len(whole) or told_another_end or (self.failed_over and len(seen) > len(whole))
            assert bool(self.redis.exists(self.keys.result(job_id))) == (not cancelled)
        lasting = {*self.keys.lanes, self.keys.control}
        leaked = [key for key in self.redis.keys("*") if self.redis.ttl(key) == -1 and key.decode() not in lasting]
        assert not leaked, leaked

    def read_on(self, job_id: str) -> None:
        cursor = self.readers.setdefault(job_id, EventCursor())
        status = self.answer(calls.status(self.keys, job_id))
        if status is None or cursor.ended:
            return
        cursor.rewind_if_lost(status)
        new = cursor.events(self.redis.xrange(self.keys.tokens(job_id), min=f"({cursor.last_entry}"))
        if cursor.last_entry == "0-0":
            new += cursor.events(self.redis.xrange(self.keys.tokens(job_id)))
        for event in new:
            if event.kind == "tokens":
                self.read.setdefault(job_id, []).extend(event.token_ids)
                assert event.hash == running_hash(0, right(job_id, 0, event.offset))
            elif event.kind == "resync":
                assert event.offset < len(self.read[job_id]), "told anew from a place the reader has not come to"
                assert self.failed_over, "told anew although nothing was lost"
                del self.read[job_id][event.offset :]
            elif event.kind == "ended":
                self.told[job_id] = event.reason

    def held(self, name: str) -> list[Delivery]:
        return [*self.unclaimed[name], *(work.delivery for work in self.workers[name].values())]

    def leads_to(self, delivery: Delivery) -> bool:
        """Whether the job names this entry as its own."""
        lane, entry = self.redis.hmget(self.keys.job(delivery.job_id), "lane", "entry")
        ready = self.redis.hget(self.keys.about(delivery.job_id)[READY], delivery.job_id)
        return (lane, entry or ready) == (delivery.lane.encode(), delivery.entry.encode())


def blob(job_id: str, start: int, ids: list[int]) -> bytes:
    return wire.encode_tokens(ids, [""] * len(ids), running_hash(0, right(job_id, 0, start + len(ids))))


def finish(keys: Keys, work: Work, name: str, ids: list[int]) -> Call[calls.PublishReply]:
    job_id = work.delivery.job_id
    result = Result(job_id=job_id, finish_reason="stop", text="", token_ids=tuple(ids))
    return calls.finish(
        keys,
        work.delivery,
        name,
        work.epoch,
        start=work.offset,
        count=len(ids),
        tokens=blob(job_id, work.offset, ids) if ids else None,
        ended=wire.encode_ended("stop"),
        result=wire.encode_result(result),
        reason="stop",
    )


def play(redis: Any, seed: int, breaking: Callable[[Call[Any]], Call[Any]] | None = None) -> None:
    """Walk, drain and audit one seed's schedule. `breaking` changes the scripts, to see whether it would be noticed."""
    schedule = Schedule(redis, seed, breaking)
    try:
        schedule.walk()
        schedule.drain()
        schedule.audit()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(schedule.log[-60:])) from error


def play_all(seeds: range, breaking: Callable[[Call[Any]], Call[Any]] | None = None) -> None:
    for seed in seeds:
        with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as redis:
            play(redis, seed, breaking)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_schedule_loses_doubles_or_reorders_a_token(first):
    """On fakeredis, for each seed of the block: every job ends once, with every token once."""
    play_all(range(first, min(first + BLOCK, SEEDS)))


def test_no_schedule_does_so_on_redis_either(redis_client):
    """The first seeds again, on a real Redis."""
    for seed in range(min(100, SEEDS)):
        redis_client.flushall()
        play(redis_client, seed)


OWNS = "return redis.pcall('HGET', job, 'owner') == epoch .. ' ' .. consumer"
OWNER = "(redis.pcall('HGET', job, 'owner') or '')"
GUARDS = {
    "no epoch check": (OWNS, f"return string.match({OWNER}, ' (.*)') == consumer"),
    "no consumer check": (OWNS, f"return string.match({OWNER}, '(.*) ') == epoch"),
    "no owner check in publish": ("if not owns(job, epoch, ARGV[1]) then", "if false then"),
    "no owner check in finish": ("if not owns(JOB, epoch, consumer) then", "if false then"),
    "no owner check in resolve": ("if not owns(KEYS[1], ARGV[1], ARGV[2]) then", "if false then"),
    "no owner check in renew": ("(epoch == '' or owns(KEYS[i], epoch, consumer)) and", ""),
    "no holder check in renew": ("and pending_at(lane, group, entry) == consumer", ""),
    "no owner check in hand_back": ("and (epoch == '' or owns(KEYS[i], epoch, consumer))", ""),
    "no holder check in claim": ("if pending_at(lane, group, entry) ~= consumer then return {'lost'} end", ""),
    "no look at the entry in claim": (" or named ~= entry or job[12] ~= ARGV[5]", ""),
    "no look at the state in claim": ("(state ~= 'queued' and state ~= 'running') or", ""),
    "no tail check in publish": ("elseif offset ~= start then", "elseif false then"),
    "no tail check in finish": ("if offset ~= start and offset ~= start + count_new then", "if false then"),
    "no nonce in claim": ("job[5] == nonce and", "false and"),
    "no nonce in cancel": ("if nonce == ARGV[6] then", "if false then"),
    "a claim may keep the epoch": ("epoch = whole(next_epoch(epoch, newest, now))", "epoch = whole(now)"),
    "a hand-back keeps the owner": (", 'epoch', whole(tonumber(epoch) + 1), 'owner', ''", ""),
    "an end keeps the owner": ("'epoch', whole(epoch), 'owner', '', ", ""),
    "decisions are made anew": ("if stored[1] and stored[2] == ARGV[4] then", "if false then"),
    "ids are not known again": ("if known[1] or known[2] then", "if false then"),
    "a finished entry stays": ("redis.call('XDEL', LANE[ARGV[7]], entry)", ""),
    "events live for ever": ("redis.call('PEXPIRE', TOKENS, whole(ttl))", ""),
    "what is held is given again": ("if not known[number .. ':' .. held[1]] then", "if true then"),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_the_fuzz_notices_each_missing_guard(guard):
    """With any one of the scripts' checks taken out, some schedule fails."""
    old, new = GUARDS[guard]

    def breaking(call: Call[Any]) -> Call[Any]:
        text = call.script.text.replace(old, new)
        return dataclasses.replace(call, script=Script(call.script.name, text, sha1(text.encode()).hexdigest()))

    names = ["enqueue", "pull", "claim", "resolve", "publish", "finish", "renew", "hand_back", "stop"]
    assert any(old in script(name).text for name in names), "the guard to break is not there any more"
    with pytest.raises(AssertionError, match="seed"):
        play_all(range(600), breaking)
