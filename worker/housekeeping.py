"""What keeps a queue in order, whoever does it: every worker does, a little each second, and several do no harm."""

from __future__ import annotations

import redis as sync_redis
import structlog

from producer.calls import due, expire, heal, promote, refill, run, run_many, tidy
from producer.keys import Keys

log = structlog.get_logger()

_MOST = 100  # of each kind in one sweep: bounds how long it takes
_TIDY_EVERY = 60  # sweeps


class Housekeeping:
    """Small bounded passes over one partition."""

    def __init__(self, redis: sync_redis.Redis, keys: Keys) -> None:
        self._redis, self._keys = redis, keys
        self._cursor = 0
        self._sweeps = 0
        self.counts = {"promoted": 0, "expired": 0, "healed": 0}

    def sweep(self) -> None:
        """Promote what is due, expire what is late, heal some, refill, tidy now and then. Raises redis.RedisError."""
        redis, keys = self._redis, self._keys
        found = run(redis, due(keys, _MOST, self._cursor))
        self._cursor = found.cursor
        if found.delayed:
            answers = run_many(redis, [promote(keys, job_id) for job_id in found.delayed])
            self.counts["promoted"] += answers.count("ok")
        for job_id, reply in zip(
            found.late,
            run_many(redis, [expire(keys, job_id) for job_id in found.late]) if found.late else (),
            strict=True,
        ):
            if getattr(reply, "met", None) in ("queued", "running", "delayed"):
                self.counts["expired"] += 1
                log.info("job_expired", job=job_id, reason="its deadline has passed")
        for job_id, answer in zip(
            found.some,
            run_many(redis, [heal(keys, job_id) for job_id in found.some]) if found.some else (),
            strict=True,
        ):
            if answer == "healed":
                self.counts["healed"] += 1
                log.warning("job_healed", job=job_id, reason="no worker would have found it; it is on its lane again")
        if found.tenants:
            run_many(redis, [refill(keys, tenant) for tenant in found.tenants])
        if self._sweeps % _TIDY_EVERY == 0:
            run(redis, tidy(keys))
        self._sweeps += 1
