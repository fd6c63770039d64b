"""What keeps a queue in order, whoever does it: every worker does, a little each second, and several do no harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis as sync_redis
import structlog

from producer.calls import Call, Delivery, discard, due, expire, heal, promote, refill, run, run_many, tidy
from producer.errors import SlipstreamError
from producer.keys import Keys

T = TypeVar("T")

log = structlog.get_logger()

_MOST = 100  # of each kind in one sweep: bounds how long it takes
_TIDY_EVERY = 60  # sweeps


class Housekeeping:
    """Small bounded passes over one partition."""

    def __init__(self, redis: sync_redis.Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._cursor = 0
        self._sweeps = 0
        self.counts = {"promoted": 0, "expired": 0, "healed": 0, "discarded": 0}

    def sweep(self) -> None:
        """Promote what is due, expire what is late, heal some, refill, tidy now and then. Raises redis.RedisError."""
        found = run(self._redis, due(self._keys, _MOST, self._cursor))
        self._cursor = found.cursor
        self.counts["promoted"] += [answer for _, answer in self._each(promote, found.delayed)].count("ok")
        for job_id, reply in self._each(expire, found.late):
            if reply.met in ("queued", "running", "delayed"):
                self.counts["expired"] += 1
                log.info("job_expired", job=job_id, reason="its deadline has passed")
        for job_id, answer in self._each(heal, found.some):
            if answer == "healed":
                self.counts["healed"] += 1
                log.warning("job_healed", job=job_id, reason="no worker would have found it; it is on its lane again")
        for _ in self._each(refill, found.tenants):
            pass
        if self._sweeps % _TIDY_EVERY == 0:
            run(self._redis, tidy(self._keys))
        self._sweeps += 1

    def _each(self, what: Callable[[Keys, str], Call[T]], names: list[str]) -> list[tuple[str, T]]:
        """`what` done to each, in one round trip. A job whose keys hold something else becomes a dead letter."""
        if not names:
            return []
        answers = run_many(self._redis, [what(self._keys, name) for name in names])
        sound: list[tuple[str, T]] = []
        for name, answer in zip(names, answers, strict=True):
            if not isinstance(answer, SlipstreamError):
                sound.append((name, answer))
            elif run(
                self._redis, discard(self._keys, Delivery(name, "normal", "0-0"), str(answer), only_if_wrong=True)
            ):
                self.counts["discarded"] += 1
                log.error("job_broken", job=name, error=str(answer), next="it becomes a dead letter")
        return sound
