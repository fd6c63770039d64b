"""The monkey: every now and then it does one thing that must not matter, drawn from a seeded generator.

In: Redis, a proxy before one worker, the workers. Out: the mischief itself, a journal of it, and what the audit needs
to know: which deaths of Redis may have taken something back (`cuts`), who was killed (`kills`), and the outages
(`outages`). What a mischief leaves to be ended later (a paused worker, a slow network) is due by the clock; `heal` ends
all. Runs in the thread that started the workers and calls `tend` while it waits.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import redis as sync_redis

from ops.chaos.audit import Cut
from ops.chaos.fleet import DRAINED, ENGINE_LOST, Fleet, Worker
from ops.chaos.power import AppendOnlyFile
from ops.chaos.proxy import Proxy
from ops.redis_server import RedisServer
from producer.keys import GROUP, Keys

_FSYNC_S = 1.0
_HEALTHY_WITHIN_S = 90.0  # three workers that start at once on two busy cores
_WATCHED = "kill a worker, and watch"
_OFFERS = 6  # to a worker whose engine is to hang over a job; others may be quicker to take it


@dataclass(frozen=True)
class Kill:
    """A worker's death and the jobs it had. `watched`: nothing else happened, and others had room for them."""

    at: float
    consumer: str
    jobs: tuple[str, ...]
    watched: bool


@dataclass(frozen=True)
class Outage:
    """A time without Redis, and until when its return may have had an effect (Unix seconds)."""

    since: float
    back: float
    until: float


@dataclass
class World:
    """What there is to do mischief to."""

    server: RedisServer
    proxy: Proxy
    fleet: Fleet
    behind_proxy: int
    """The slot whose worker reaches Redis through the proxy."""
    lease_s: float
    outage_s: float
    pause_s: float
    """Between one thing and the next, more or less."""
    loses: bool
    """Whether Redis may lose its last second: `appendfsync everysec`."""
    feed: Callable[[int], None]
    """Have so many more jobs submitted."""
    outstanding: Callable[[], int]
    """Jobs on their way."""
    room: int
    """Jobs that all workers but one have room for."""


@dataclass
class Monkey:
    """`step` does the next thing; `heal` ends everything that lasts."""

    world: World
    rng: Random
    journal: Path
    kills: list[Kill] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._quiet_s = 0.0
        self._has_rested = False
        self._keys = Keys()
        self._file = AppendOnlyFile(self.world.server)
        self._kinds: dict[str, tuple[float, Callable[[], str | None]]] = {
            "kill a worker": (2.0, self._kill_worker),
            _WATCHED: (0.7, self._watched_kill),
            "pause a worker": (1.5, self._pause_worker),
            "stop a worker": (1.0, self._stop_worker),
            "hang an engine": (1.0, self._hang_engine),
            "kill Redis": (1.5, self._kill_redis),
            "kill a connection": (2.0, self._kill_connection),
            "flush the scripts": (1.5, self._flush_scripts),
            "delete a group": (1.5, self._delete_group),
            "cut the network": (1.0, self._cut),
            "slow network": (1.0, self._slow),
            "half-open network": (1.0, self._half_open),
            "lost answers": (1.0, self._lost_answers),
        }
        if self.world.loses:
            self._kinds["power cut"] = (1.0, self._power_cut)
        self._first = list(self._kinds)
        self.rng.shuffle(self._first)
        self._first.sort(key=lambda kind: kind == _WATCHED)  # last, or first after the outage

    @property
    def untried(self) -> list[str]:
        """Kinds of mischief that were not possible so far, or not yet due."""
        return list(self._first)

    def step(self, jobs: int) -> bool:
        """Have so many jobs submitted and do the next thing while they run; whether it could be done.

        Each kind once, in a random order, then whatever is drawn.
        """
        self._busy(jobs)
        if not self._first:
            weights = [weight for weight, _ in self._kinds.values()]
            return self._do(self.rng.choices(list(self._kinds), weights)[0])
        kind = self._first.pop(0)
        done = self._do(kind)
        if not done:
            self._first.insert(1, kind)  # not possible just now; soon, while there are jobs to meet it
        return done

    def pause(self) -> None:
        """Wait a little, longer where what was done is to be watched."""
        quiet_s, self._quiet_s = self._quiet_s, 0.0
        self.wait(quiet_s or self.world.pause_s * self.rng.uniform(0.4, 1.6))

    def outage(self) -> None:
        """Take Redis away for longer than a lease, with nothing else going on before or after.

        The worker whose death is watched wants such a calm as well, so the first one dies next.
        """
        self._calm()
        self._busy(self.world.room // 2)
        began = time.time()
        self._note("outage", f"{self.world.outage_s:g} s")
        self.world.server.kill9()
        self.wait(self.world.outage_s)
        self.world.server.restart()
        back = time.time()
        self.wait(2.5 * self.world.lease_s)
        self.outages.append(Outage(began, back, time.time()))
        self._has_rested = True
        if _WATCHED in self._first:
            self._first.remove(_WATCHED)
            self._first.insert(0, _WATCHED)

    def heal(self) -> None:
        """End all that lasts."""
        later, self._later = self._later, []
        for _, end in sorted(later, key=lambda one: one[0]):
            end()
        self.world.proxy.heal()
        for worker in self.world.fleet.slots:
            worker.resume()
        if not self.world.server.is_running:
            self.world.server.restart()

    def close(self) -> None:
        self._file.close()

    def _do(self, kind: str) -> bool:
        what = self._kinds[kind][1]()
        self._has_rested = False
        if what is None:
            return False
        self._note(kind, what)
        return True

    def _note(self, kind: str, what: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        with self.journal.open("a") as journal:
            journal.write(json.dumps({"at": round(time.time(), 3), "kind": kind, "what": what}) + "\n")

    def wait(self, seconds: float) -> None:
        """Let time pass: what is due ends, what has died is started again."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for one in [one for one in self._later if one[0] <= now]:
                self._later.remove(one)
                one[1]()
            self.world.fleet.tend()
            if now >= until:
                return
            time.sleep(min(0.05, until - now))

    def _calm(self) -> None:
        """Wait until all is well, and has been for a lease."""
        if self._has_rested and self._is_calm:
            return
        deadline = time.monotonic() + _HEALTHY_WITHIN_S
        while not self._is_calm and time.monotonic() < deadline:
            if not self.world.outstanding():
                self.world.feed(1)  # an engine that hangs shows only where there is work for it
            self.wait(0.2)
        self.wait(1.5 * self.world.lease_s)

    @property
    def _is_calm(self) -> bool:
        some = self.world.room // 2
        return not self._later and self.world.fleet.all_ready and self.world.outstanding() <= some

    def _busy(self, jobs: int) -> None:
        """Have so many jobs submitted, and wait a little until workers are at them."""
        self.world.feed(jobs)
        for _ in range(20):
            running = self._jobs()
            if sum(len(running.get(worker.consumer or "", ())) for worker in self.world.fleet.ready) >= jobs / 3:
                return
            self.wait(0.05)

    def _end_later(self, seconds: float, end: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, end))

    # Workers

    def _victim(self, busiest: float = 0.7) -> Worker | None:
        """A worker to take away, mostly the one with most jobs: one that is ready, while another is and stays so."""
        ready = self.world.fleet.ready
        if len(ready) < 2:
            return None
        jobs = self._jobs()
        if self.rng.random() < busiest:
            return max(ready, key=lambda worker: len(jobs.get(worker.consumer or "", ())))
        return self.rng.choice(ready)

    def _kill_worker(self) -> str | None:
        victim = self._victim()
        return None if victim is None else self._kill(victim, watched=False)

    def _watched_kill(self) -> str | None:
        """Nothing else goes on from a lease before until its jobs must have a new owner, and others have room."""
        self._calm()
        self._busy(self.world.room // 2)
        if not self._is_calm or (victim := self._victim(busiest=1.0)) is None:
            return None
        self._quiet_s = 2.0 * self.world.lease_s
        return self._kill(victim, watched=True)

    def _kill(self, victim: Worker, *, watched: bool) -> str:
        assert victim.consumer is not None
        jobs = tuple(self._jobs().get(victim.consumer, ()))
        at = time.time()
        victim.end(signal.SIGKILL, -signal.SIGKILL)
        self.kills.append(Kill(at, victim.consumer, jobs, watched))
        return f"{victim.log.name}, with {len(jobs)} jobs"

    def _jobs(self) -> dict[str, list[str]]:
        """The jobs that each worker has, by its consumer's name; nothing where Redis does not answer."""
        with self._admin() as admin:
            try:
                live: Any = admin.zrange(self._keys.deadlines, 0, -1)
                with admin.pipeline(transaction=False) as pipeline:
                    for job in live:
                        pipeline.hget(self._keys.job(job.decode()), "owner")
                    owners = pipeline.execute()
            except sync_redis.RedisError:
                return {}
        jobs: dict[str, list[str]] = {}
        for job, owner in zip(live, owners, strict=True):
            if owner:
                jobs.setdefault(owner.decode().partition(" ")[2], []).append(job.decode())
        return jobs

    def _pause_worker(self) -> str | None:
        """SIGSTOP for two leases: its own process, or its engine's with it."""
        victim = self._victim()
        if victim is None:
            return None
        victim.paused = True
        whole = victim.engine is not None and self.rng.random() < 0.5
        if whole and victim.engine is not None:
            victim.engine.suspend()
            victim.fate.add(ENGINE_LOST)  # it may well take its engine for hung when it wakes first
        victim.send(signal.SIGSTOP)
        self._end_later(2 * self.world.lease_s, victim.resume)
        return f"{victim.log.name}{' and its engine' if whole else ''}"

    def _stop_worker(self) -> str | None:
        """SIGTERM, and sometimes a second one: hand back now."""
        victim = self._victim()
        if victim is None:
            return None
        victim.end(signal.SIGTERM, DRAINED)
        twice = self.rng.random() < 0.5
        if twice:
            self._end_later(0.3, lambda: victim.send(signal.SIGTERM))
        return f"{victim.log.name}{', twice' if twice else ''}"

    def _hang_engine(self) -> str | None:
        """A step that never ends, while the worker's own process lives."""
        victim = self._victim(busiest=1.0)
        if victim is None or victim.engine is None:
            return None
        victim.engine.suspend()  # first: on a fast machine the jobs it has would be done before it hangs
        for _ in range(_OFFERS):
            if self._jobs().get(victim.consumer or ""):
                victim.doomed = True
                victim.fate.add(ENGINE_LOST)
                return victim.log.name
            self.world.feed(1)
            self.wait(0.2)
        victim.engine.resume()
        return None

    # Redis

    def _admin(self) -> sync_redis.Redis:
        return sync_redis.Redis(port=self.world.server.port, socket_timeout=2.0)

    def _command(self, run: Callable[[sync_redis.Redis], str]) -> str | None:
        with self._admin() as admin:
            try:
                return run(admin)
            except sync_redis.RedisError as error:
                return f"{type(error).__name__}: {error}"

    def _kill_redis(self) -> str:
        down_s = self.rng.choice((0.0, self.rng.uniform(0.0, 1.5)))
        self.world.server.kill9()
        at = time.time()
        self.wait(down_s)
        self.world.server.restart()
        if (
            self.world.loses
        ):  # what it had answered and not yet handed to the kernel: at most two seconds, says its manual
            self.cuts.append(Cut(at - 2.0, at + 0.1))
        return f"{down_s:.1f} s"

    def _power_cut(self) -> str:
        self.world.server.kill9()
        at = time.time()
        since = self._file.cut(self.rng.uniform(0.1, _FSYNC_S))
        self.world.server.restart()
        self.cuts.append(Cut(since - 0.1, at + 0.1))
        return f"{at - since:.2f} s are gone"

    def _kill_connection(self) -> str | None:
        def kill(admin: sync_redis.Redis) -> str:
            own, listed = admin.client_id(), admin.client_list()
            others = [one for one in listed if int(one["id"]) != own]
            if not others:
                return "nobody"
            chosen = self.rng.choice(others)
            admin.client_kill_filter(_id=chosen["id"])
            return f"{chosen['cmd']}"

        return self._command(kill)

    def _flush_scripts(self) -> str | None:
        return self._command(lambda admin: str(admin.script_flush()))

    def _delete_group(self) -> str | None:
        lane = self.rng.choice(self._keys.lanes)
        return self._command(lambda admin: f"{lane}: {admin.xgroup_destroy(lane, GROUP)}")

    # The network of one worker

    def _cut(self) -> str:
        self.world.proxy.cut()
        return f"{self.world.proxy.accepted} connections so far"

    def _slow(self) -> str:
        seconds = self.rng.uniform(0.05, 1.5)
        self.world.proxy.delay(seconds)
        self._end_later(self.rng.uniform(1, 2) * self.world.lease_s, self.world.proxy.heal)
        return f"{seconds:.1f} s"

    def _half_open(self) -> str:
        self.world.proxy.blackhole()
        self._end_later(self.rng.uniform(0.5, 2) * self.world.lease_s, self.world.proxy.heal)
        return "both ways"

    def _lost_answers(self) -> str:
        self.world.proxy.lose_answers()
        self._end_later(self.rng.uniform(0.5, 1.5) * self.world.lease_s, self.world.proxy.heal)
        return "answers only"
