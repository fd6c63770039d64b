"""One chaos run from start to audit: Redis, workers, clients, the monkey, and what came of it as a `Report`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Any

import redis as sync_redis

from ops import redis_server
from ops.chaos import audit
from ops.chaos.audit import Evidence, Finding, Verdict, collect, leftovers
from ops.chaos.clients import Clients
from ops.chaos.fleet import Fleet, WorkerSettings
from ops.chaos.monkey import Monkey, Outage, World
from ops.chaos.plan import plan
from ops.chaos.proxy import Proxy
from ops.chaos.recovery import Recovery, recoveries
from ops.chaos.reference import Answer, read
from ops.demo.servers import Program
from producer.keys import Keys

MODEL = Path(__file__).parents[1] / "demo" / "model"
DRAIN_WITHIN_S = 240.0
_REDIS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Options:
    """What a run is like."""

    seed: int
    jobs: int
    directory: Path
    """For all logs, Redis' files and the result."""
    workers: int = 3
    producers: int = 4
    appendfsync: str = "everysec"
    lease_s: float = 3.0
    max_rows: int = 16
    outage_s: float = 60.0
    mischief: int = 200
    """Things the monkey does, each kind once among them. Jobs are spread over them."""
    pause_s: float = 1.0
    """Between two of them, more or less."""


@dataclass
class Report:
    """What came of a run."""

    options: Options
    verdict: Verdict
    mischief: dict[str, int]
    exits: dict[int, int]
    accepted: int
    refused: set[str]
    """Jobs whose deadline had passed when Redis could hear of them."""
    untried: list[str]
    """Kinds of mischief that could not be done."""
    seconds: float
    recoveries: list[Recovery] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.verdict.findings


def run(options: Options, say: Callable[[str], None] = print) -> Report:
    """Run it. Call it from a thread that lives until it returns: servers and workers end with that thread."""
    options.directory.mkdir(parents=True)
    planned = plan(options.seed, options.jobs, options.producers)
    began = time.monotonic()
    with ExitStack() as at_the_end:
        server = at_the_end.enter_context(
            redis_server.start(
                directory=_made(options.directory / "redis"), appendonly=True, appendfsync=options.appendfsync
            )
        )
        proxy = at_the_end.enter_context(Proxy(server.port))
        written = options.directory / "reference.json"
        with written.open("w") as output:
            reference = at_the_end.enter_context(_reference(options, output))
        urls = [proxy.url, *[server.url] * (options.workers - 1)]
        settings = WorkerSettings(str(MODEL), options.lease_s, options.max_rows)
        fleet = Fleet(urls, options.directory, settings)
        at_the_end.callback(fleet.kill)
        room = (options.workers - 1) * options.max_rows
        clients = Clients(server.url, planned, options.producers, most=8 * room)
        world = World(
            server=server,
            proxy=proxy,
            fleet=fleet,
            behind_proxy=0,
            lease_s=options.lease_s,
            outage_s=options.outage_s,
            pause_s=options.pause_s,
            loses=options.appendfsync != "always",
            feed=clients.feed,
            outstanding=lambda: clients.outstanding,
            room=room,
        )
        monkey = Monkey(world, Random(f"monkey {options.seed}"), options.directory / "mischief.jsonl")
        at_the_end.callback(monkey.close)
        _until(lambda: fleet.all_ready, 180.0, fleet, "the workers are ready")
        say(f"{options.workers} workers are ready")
        clients.start()
        try:
            _mischief(monkey, clients, options, say)
            monkey.heal()
            finished = _drain(clients, fleet, say)
        finally:
            clients.give_up()
            clients.join()
        if reference.process.wait() != 0:
            raise RuntimeError("the undisturbed run failed; its traceback stands above")
        answers = read(written.read_text())
        return _audited(options, clients, fleet, monkey, server.url, answers, finished, time.monotonic() - began)


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def _reference(options: Options, output: IO[str]) -> Program:
    """The undisturbed run of the same jobs, beside the other: nothing here is a measurement."""
    words = {"seed": options.seed, "jobs": options.jobs, "producers": options.producers, "model": MODEL}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return Program("ops.chaos.reference", *flags, stdout=output, stderr=subprocess.STDOUT)


def _mischief(monkey: Monkey, clients: Clients, options: Options, say: Callable[[str], None]) -> None:
    """A moment, some jobs, some mischief, until all of both is done; in the middle Redis is away for long."""
    began, told = time.monotonic(), 0.0
    done = tries = 0
    while (done < options.mischief or monkey.untried) and tries < 3 * options.mischief:
        now = time.monotonic() - began
        if now > told + 10:
            told = now
            say(f"{now:4.0f} s: {clients.submitted} jobs submitted, {clients.outstanding} on their way")
        monkey.pause()
        kept = monkey.world.room if monkey.untried or not monkey.outages else 0  # what comes late meets somebody too
        share = max(0, options.jobs - clients.submitted - kept) / max(8, options.mischief - done)
        jobs = round(share * monkey.rng.choice((0.4, 0.8, 0.8, 2)))
        done += monkey.step(max(jobs, 4 if monkey.untried else 0))
        tries += 1
        if done >= options.mischief // 2 and not monkey.outages:
            say(f"{now:4.0f} s: Redis is away for {options.outage_s:g} s")
            monkey.outage()
    clients.feed(options.jobs)


def _drain(clients: Clients, fleet: Fleet, say: Callable[[str], None]) -> bool:
    """No more mischief: whether everything has come to its end."""
    say(f"the monkey stops; {clients.outstanding} jobs are on their way")
    deadline = time.monotonic() + DRAIN_WITHIN_S
    while not clients.done and time.monotonic() < deadline:
        fleet.tend()
        time.sleep(0.1)
    return clients.done


def _audited(
    options: Options,
    clients: Clients,
    fleet: Fleet,
    monkey: Monkey,
    url: str,
    answers: dict[str, Answer],
    finished: bool,
    seconds: float,
) -> Report:
    keys = Keys()
    with sync_redis.Redis.from_url(url, socket_timeout=_REDIS_TIMEOUT_S) as redis:
        _until(
            lambda: not any(redis.xlen(lane) for lane in keys.lanes), 20.0, fleet, None
        )  # tombstones of cancelled jobs
        fleet.stop()
        found = collect(redis, keys, clients.asked)
        verdict = audit.judge(Evidence(clients.asked, clients.seen, found, answers, monkey.cuts))
        verdict.findings += leftovers(redis, keys)
    verdict.findings += [Finding("worker", "", what) for what in fleet.surprises]
    verdict.findings += takeovers(found, monkey.outages)
    if not finished:
        verdict.findings.append(Finding("lost", "", f"{clients.outstanding} readers still waited at the end"))
    verdict.findings += [
        Finding("wrong", job, "the second submission under its key got another id")
        for job in clients.told_twice_differently
    ]
    return Report(
        options,
        verdict,
        monkey.counts,
        fleet.exits,
        accepted=len(clients.asked),
        refused=clients.too_late,
        untried=monkey.untried,
        seconds=seconds,
        recoveries=recoveries(monkey.kills, found, clients.seen),
    )


def takeovers(found: dict[str, audit.InRedis], outages: list[Outage]) -> list[Finding]:
    """Jobs that changed hands because Redis was away: all their workers lived, so none may."""
    findings = []
    for outage in outages:
        for job, there in found.items():
            for line in there.status.history if there.status else ():
                if outage.since <= line.at <= outage.until and "ran out" in line.what:
                    findings.append(
                        Finding("takeover", job, f"{line.at - outage.back:.1f} s after Redis was back: {line.what}")
                    )
    return findings


def _until(condition: Callable[[], Any], seconds: float, fleet: Fleet, what: str | None) -> None:
    """Wait for a condition, workers tended; without `what` it is no error if it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            if what is not None:
                raise RuntimeError(f"waited {seconds:g} s in vain until {what}; logs: {fleet.slots[0].log.parent}")
            return
        fleet.tend()
        time.sleep(0.05)
