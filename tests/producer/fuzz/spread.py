"""Many schedules at once: a process for each core, each with a redis-server of its own. Failures come back as text."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.queues import SimpleQueue
from typing import Any

import redis

from ops import redis_server
from tests.producer.fuzz.guards import BREAKING, THEMES
from tests.producer.fuzz.schedule import Failed, Schedule, make, play, report, shrink
from tests.producer.fuzz.world import Breaking

_server: list[redis.Redis] = []  # of this process, once it has begun


@contextmanager
def processes(count: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool in whose processes `first_failure` and `first_notice` may run."""
    count = count or len(os.sched_getaffinity(0))
    spawning = multiprocessing.get_context("spawn")  # a fork takes threads along, stopped where they are
    with ExitStack() as servers:
        urls: SimpleQueue[str] = spawning.SimpleQueue()
        for _ in range(count):
            urls.put(servers.enter_context(redis_server.start()).url)
        with ProcessPoolExecutor(count, spawning, _begin, (urls,)) as pool:
            yield pool


def _begin(urls: SimpleQueue[str]) -> None:
    _server.append(redis.Redis.from_url(urls.get()))


def first_failure(seeds: range) -> str | None:
    """Play these seeds on this process's server, until one fails: the report of that one; None if none does."""
    for seed in seeds:
        if text := failure_of(_server[0], make(seed)):
            return text
    return None


def first_notice(seeds: Iterable[int], guard: str) -> str | None:
    """Why the first of these seeds fails without a guard, with which it goes well; None if none fails."""
    breaking = BREAKING[guard]()
    for seed in seeds:
        schedule = make(seed, THEMES[guard])
        if failed := fails(_server[0], schedule, breaking):
            assert "compiling script" not in failed.why, f"without it the script is none: {failed.why}"
            whole = fails(_server[0], schedule)
            assert whole is None, f"seed {seed} fails with it too: {whole}"
            return f"seed {seed}: {failed.why}"
    return None


def failure_of(connection: Any, schedule: Schedule, breaking: Breaking | None = None) -> str | None:
    """Play a schedule on a database, which is emptied: None, or the report of its failure and of what that takes."""
    failed = fails(connection, schedule, breaking)
    return None if failed is None else report(failed, shrunk_to(connection, failed, breaking))


def fails(connection: Any, schedule: Schedule, breaking: Breaking | None = None) -> Failed | None:
    """Play a schedule on an emptied database; how it failed."""
    connection.flushdb()
    try:
        play(connection, schedule, breaking)
    except Failed as failed:
        return failed
    return None


def shrunk_to(connection: Any, failed: Failed, breaking: Breaking | None = None) -> Failed:
    """The failure of the shortest part of a schedule that was found to fail."""
    last = [failed]

    def fails_too(tried: Schedule) -> bool:
        found = fails(connection, tried, breaking)
        if found is not None:
            last.append(found)
        return found is not None

    shrink(failed.schedule, fails_too, failed.steps)
    return last[-1]


def in_blocks(pool: ProcessPoolExecutor, seeds: range, size: int) -> list[Future[str | None]]:
    """The seeds, so many at a time."""
    return [pool.submit(first_failure, seeds[at : at + size]) for at in range(0, len(seeds), size)]
