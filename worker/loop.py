"""The loop that joins the halves: jobs from Redis to the engine's process, its tokens back to the result streams.

One thread, no step of its own: it waits for the engine, the doorbell or a signal, whichever comes first, and then does
what is due. Redis being away changes nothing about the loop: what fails is due again a little later.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from functools import partial
from multiprocessing.connection import wait
from secrets import token_hex
from types import FrameType
from typing import Any

import msgpack
import redis as sync_redis
import structlog

from producer import connection
from producer.calls import hand_back, heartbeat, renew, retry, run_many
from worker.doorbell import BLOCK_S, Doorbell
from worker.engine_link import EngineLink, EngineLost
from worker.housekeeping import Housekeeping
from worker.inbox import Inbox
from worker.outbox import Outbox
from worker.partitions import Partitions
from worker.settings import Settings
from worker.starter import Starter
from worker.text import TextModel

log = structlog.get_logger()

EXIT_DRAINED = 0
EXIT_ENGINE_LOST = 3

_HEARTBEAT_S = 1.0
_HEARTBEAT_TTL_S = 5.0
_HOUSE_S = 1.0
_IDLE_S = 0.5  # the longest the loop waits for anything
_MESSAGES_A_TURN = 64  # of the engine, before Redis has its turn again
_DOORBELL_TIMEOUT_S = 2.0  # for an answer beyond the block: by then a half-open connection is noticed
_BACKOFF_S = (0.1, 5.0)  # first and longest pause after Redis has failed


class Worker:
    """One worker process: partitions of a queue on one side, one engine on the other."""

    def __init__(self, settings: Settings, redis: sync_redis.Redis, engine: EngineLink, text: TextModel) -> None:
        """engine: ready or not yet; redis: answers or not, that shows when it is used."""
        self._settings = settings
        self._redis, self._engine, self._text = redis, engine, text
        self._partitions = Partitions(settings.queue, settings.served_partitions)
        self._consumer = f"{settings.name}-{os.getpid()}-{token_hex(4)}"
        self._load: dict[str, int] = {}
        self._stop_signals = 0
        self._drain_by: float | None = None
        self._redis_down = 0  # failures in a row
        self._retry_at = 0.0
        self._due = dict.fromkeys(("flush", "renew", "reclaim", "heartbeat", "house", "health"), 0.0)
        self._pull_now = True
        self._engine_heard = time.monotonic()

    def run(self) -> int:
        """Serve until told to stop. Returns the exit code. Raises EngineUnable if the model can't be loaded."""
        self._startup()
        try:
            while not self._is_drained():
                self._take_steps(self._wait())
                self._talk_to_redis()
                self._watch()
            return EXIT_DRAINED
        except EngineLost as error:
            log.error("engine_lost", error=str(error), next="its jobs go back to the queue; this worker exits")
            self._give_up(str(error))
            return EXIT_ENGINE_LOST
        finally:
            self._shutdown()

    def _startup(self) -> None:
        described = self._engine.wait_ready()
        rows: int = described["max_rows"]
        self._room = rows + rows // 8  # look-ahead: a freed row is filled at once
        settings = self._settings
        where = (self._redis, self._partitions, self._consumer)
        limits = (described["max_len"], settings.max_strikes, settings.max_deliveries)
        self._inbox = Inbox(*where, self._text, settings.served_name, *limits)
        self._outbox = Outbox(*where)
        self._starter = Starter(*where, self._engine, self._text, self._inbox, self._outbox)
        self._houses = [Housekeeping(self._redis, keys) for keys in self._partitions]
        own = partial(connection.connect_to_block, settings.redis, timeout_s=_DOORBELL_TIMEOUT_S, block_s=BLOCK_S)
        self._doorbell = Doorbell(own, self._partitions, self._text.fingerprint)
        self._wakeup_r, wakeup_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        if (reason := described["slower_because"]) is not None:
            log.warning("slower_backend", backend=described["backend"], reason=reason, next="it runs all the same")
        log.info("worker_ready", consumer=self._consumer, queue=self._settings.queue, **described)

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signals += 1

    def _is_drained(self) -> bool:
        if not self._stop_signals:
            return False
        if self._drain_by is None:
            self._drain_by = time.monotonic() + self._settings.drain_grace_s
            log.info("draining", running=len(self._outbox.jobs), grace_s=self._settings.drain_grace_s)
        out_of_time = self._stop_signals > 1 or time.monotonic() > self._drain_by
        return self._outbox.is_empty or out_of_time

    def _wait(self) -> list[Any]:
        """Sleep until there is something to do; what woke us."""
        now = time.monotonic()
        sources: list[Any] = [self._doorbell, self._wakeup_r]
        if self._outbox.unpublished < self._settings.max_unpublished:
            sources.append(self._engine.connection)  # else decoding pauses, once the connection's buffer is full
        woken: list[Any] = list(wait(sources, timeout=min(_IDLE_S, max(0.0, self._next_due() - now))))
        if self._wakeup_r in woken:
            os.read(self._wakeup_r, 64)
        if self._doorbell in woken and self._doorbell.answer():
            self._pull_now = True
        return woken

    def _next_due(self) -> float:
        """When there is something to do by the clock alone."""
        if self._redis_down:
            return self._retry_at
        off = {"flush"} if self._outbox.is_empty else set()
        if self._stop_signals or self._free == 0:  # what is due but can't be done must not keep the loop awake
            off.add("reclaim")
        return min(due for what, due in self._due.items() if what not in off)

    @property
    def _free(self) -> int:
        """Jobs that there is room for; none while some wait for one that runs alone."""
        if self._starter.is_waiting:
            return 0
        return max(0, self._room - len(self._outbox.jobs) - len(self._inbox.held))

    def _take_steps(self, woken: list[Any]) -> None:
        """Take in what the engine has said."""
        if self._engine.connection not in woken:
            return
        for _ in range(_MESSAGES_A_TURN):
            if not self._engine.connection.poll():
                break
            now = time.monotonic()
            self._engine_heard = now
            match self._engine.receive():
                case ("step", emissions, load):
                    self._load = load
                    self._engine.cancel(self._outbox.take(emissions))
                case ("refused", sequence_id, _, message):
                    self._outbox.fail(sequence_id, "unservable", message)

    def _talk_to_redis(self) -> None:
        """Everything that is due, unless Redis has just failed."""
        now = time.monotonic()
        if now < self._retry_at:
            return
        if self._redis_down:
            # Others could not renew either. If it is back now, we renew at once and give them a lease to do the same.
            self._due["renew"], self._due["reclaim"] = now, now + self._settings.lease_s
        try:
            if self._outbox.urgent or (self._is_due("flush", now) and not self._outbox.is_empty):
                self._flush(now)
            if self._is_due("renew", now):
                self._renew(now)
            if not self._stop_signals:
                self._fill(now)
            self._starter.start()
            if self._is_due("house", now):
                self._keep_house(now)
            if self._is_due("heartbeat", now):
                self._say_that_we_live(now)
        except sync_redis.RedisError as error:
            self._note_redis_down(error)
        else:
            self._note_redis_up()

    def _flush(self, now: float) -> None:
        self._due["flush"] = now + self._settings.flush_interval_s
        before = len(self._outbox.jobs)
        self._engine.cancel(self._outbox.flush())
        if len(self._outbox.jobs) < before:
            self._pull_now = True

    def _renew(self, now: float) -> None:
        held = [*self._inbox.held, *self._outbox.held]
        if held:
            parts = self._partitions.split(held, lambda item: item.delivery)
            # What is lost shows as fenced at the next flush.
            run_many(self._redis, [renew(keys, self._consumer, part) for keys, part in parts])
        self._due["renew"] = now + self._settings.renew_s

    def _keep_house(self, now: float) -> None:
        """Sweep one partition, the others in their turn."""
        self._due["house"] = now + _HOUSE_S / len(self._houses) * random.uniform(0.5, 1.5)
        house = self._houses.pop(0)
        self._houses.append(house)
        house.sweep()

    def _say_that_we_live(self, now: float) -> None:
        self._due["heartbeat"] = now + _HEARTBEAT_S
        swept = Counter[str]()
        for house in self._houses:
            swept.update(house.counts)
        counts = {**self._inbox.counts, **self._outbox.load(), **swept}
        info = msgpack.packb({"model": self._settings.served_name, **self._load, **counts})
        run_many(self._redis, [heartbeat(keys, self._consumer, info, _HEARTBEAT_TTL_S) for keys in self._partitions])

    def _fill(self, now: float) -> None:
        """Pull exactly as much as there is room for; jobs of lost workers first."""
        if self._free and self._is_due("reclaim", now):
            held = [item.delivery for item in self._outbox.held]
            complete = self._inbox.reclaim(self._settings.lease_s, self._free, held)
            if complete:
                self._due["reclaim"] = now + self._settings.reclaim_s * random.uniform(0.8, 1.2)
        if self._pull_now and (room := self._free):
            pulled = self._inbox.pull(room, [item.delivery for item in self._outbox.held])
            self._pull_now = pulled == room
            if pulled < room:
                self._doorbell.listen()
        if self._inbox.held:
            self._admit()

    def _admit(self) -> None:
        taken = self._inbox.take()
        if self._is_idle:
            self._engine_heard = time.monotonic()  # it had nothing to say; its silence counts from here
        for refusal in taken.refused:
            self._outbox.refuse(refusal)
        for job in taken.jobs:
            self._outbox.add(job)
            if not job.has_ended:
                self._starter.add(job)

    @property
    def _is_idle(self) -> bool:
        """Whether the engine has nothing to do."""
        return not any(self._starter.runs(job) for job in self._outbox.jobs.values())

    def _is_due(self, what: str, now: float) -> bool:
        return now >= self._due[what]

    def _note_redis_down(self, error: sync_redis.RedisError) -> None:
        self._redis_down += 1
        first, longest = _BACKOFF_S[0], min(_BACKOFF_S[1], self._settings.lease_s / 4)  # all are back within a lease
        pause = min(longest, first * 2 ** (self._redis_down - 1)) * random.uniform(0.5, 1.0)
        self._retry_at, self._pull_now = time.monotonic() + pause, True
        if self._redis_down in (1, 10, 100):
            log.warning(
                "redis_down",
                error=f"{type(error).__name__}: {error}",
                failures=self._redis_down,
                unpublished_tokens=self._outbox.unpublished,
                next=f"again in {pause:.1f} s; running jobs go on, their tokens are kept",
            )

    def _note_redis_up(self) -> None:
        if self._redis_down:
            log.info("redis_back", failures=self._redis_down)
        self._redis_down = 0

    def _watch(self) -> None:
        """Is the engine getting on? Only then is the health file touched, and only then do we go on."""
        now = time.monotonic()
        if not self._is_due("health", now):
            return
        self._due["health"] = now + 1.0
        if self._engine.connection.poll():  # it has spoken; it was us who did not listen, with Redis slow to answer
            self._engine_heard = now
        silent_s = now - self._engine_heard
        paused = self._outbox.unpublished >= self._settings.max_unpublished
        if self._is_idle or paused:
            self._engine_heard = now
        elif silent_s > self._hangs_after_s:
            self._engine.kill()
            raise EngineLost(f"no step has ended for {silent_s:.0f} s while jobs are running: it hangs")
        if self._settings.health_file is not None:
            self._settings.health_file.touch()

    @property
    def _hangs_after_s(self) -> float:
        """Silence by which the engine hangs: a lease, or more where its steps are long (a big model on a CPU)."""
        lease_s = self._settings.lease_s
        if not self._load:  # no step has ended yet
            return 10 * lease_s
        return max(lease_s, 4 * self._load["longest_step_ms"] / 1000)

    def _give_up(self, error: str) -> None:
        """The engine failed with these jobs in it: which of them it was, the queue finds out."""
        try:
            self._outbox.flush()
            running = [job for job in self._outbox.jobs.values() if self._starter.runs(job)]
            pause = self._settings.retry_backoff_s
            keys_of, consumer = self._partitions.of, self._consumer
            calls = [
                retry(keys_of(job.delivery), job.delivery, consumer, job.epoch, error, backoff_s=pause)
                for job in running
            ]
            for job, reply in zip(running, run_many(self._redis, calls) if calls else (), strict=True):
                del self._outbox.jobs[job.sequence_id]
                log.warning("job_given_up", job=job.job_id, next=getattr(reply, "status", str(reply)), error=error)
        except sync_redis.RedisError as trouble:
            log.warning("give_up_failed", error=str(trouble), next="the jobs' leases run out")

    def _shutdown(self) -> None:
        """Give back what is left, so that no one waits for a lease, and let the engine go."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # one that comes while Python ends would make our exit code its own
        self._doorbell.close()
        held = [*self._inbox.held, *self._outbox.held]
        if held:
            try:
                self._outbox.flush()
                held = [*self._inbox.held, *self._outbox.held]
                parts = self._partitions.split(held, lambda item: item.delivery)
                calls = [hand_back(keys, self._consumer, part) for keys, part in parts]
                answers = run_many(self._redis, calls) if calls else []
                log.info("handed_back", jobs=sum(sum(given) for given in answers if isinstance(given, list)))
            except sync_redis.RedisError as error:
                log.warning("hand_back_failed", error=str(error), jobs=len(held), next="their leases run out")
        self._engine.close()
        log.info("worker_stopped", consumer=self._consumer, **self._load, finished=self._outbox.finished)
