"""The names of a queue's keys and of its jobs. What each key holds is the table in protocol.py."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal, get_args

from producer.errors import InvalidJob

Lane = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = get_args(Lane)

GROUP = "workers"
"""The consumer group of every lane."""
HANDOFF = "handoff"
"""The consumer that holds entries nobody works on and anybody may take at once."""

QUEUE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
JOB_ID = re.compile(r"(?P<partition>0|[1-9]\d{0,4})\.(?P<tenant>[A-Za-z0-9_-]{1,64})\.[A-Za-z0-9_-]{8,64}")


@dataclass(frozen=True)
class Keys:
    """The keys of one partition of one queue. Raises InvalidJob if `queue` cannot be a queue's name."""

    queue: str = "default"
    partition: int = 0

    lanes: tuple[str, ...] = field(init=False, repr=False)
    turns: str = field(init=False, repr=False)
    bell: str = field(init=False, repr=False)
    control: str = field(init=False, repr=False)
    workers: str = field(init=False, repr=False)
    counts: str = field(init=False, repr=False)
    deadlines: str = field(init=False, repr=False)
    delayed: str = field(init=False, repr=False)
    dead: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not QUEUE.fullmatch(self.queue):
            raise InvalidJob("queue", self.queue, "1 to 64 letters, digits, `_`, `.` or `-`")
        object.__setattr__(self, "lanes", tuple(self.lane(lane) for lane in LANES))
        for name in ("turns", "bell", "control", "workers", "counts", "deadlines", "delayed", "dead"):
            object.__setattr__(self, name, self._key(name))

    @classmethod
    def of(cls, queue: str, job_id: str) -> Keys:
        """The partition that holds `job_id`. Raises InvalidJob if that is no job id."""
        return cls(queue, partition_of(job_id))

    def lane(self, lane: Lane) -> str:
        """The stream of one priority."""
        return self._key(f"lane:{lane}")

    def job(self, job_id: str) -> str:
        """The hash of a job's state."""
        return self._key(f"job:{job_id}")

    def tokens(self, job_id: str) -> str:
        """The stream of a job's events."""
        return self._key(f"tokens:{job_id}")

    def result(self, job_id: str) -> str:
        """The string with a job's Result."""
        return self._key(f"result:{job_id}")

    def about(self, job_id: str) -> tuple[str, ...]:
        """What a script about one job is given, in the order that scripts/prelude.lua names them."""
        tenant = tenant_of(job_id)
        return (
            self.job(job_id),
            self.tokens(job_id),
            self.result(job_id),
            *self.lanes,
            *(self._key(f"{what}:{tenant}") for what in ("waiting", "ready", "running")),
            self.counts,
            self.deadlines,
            self.delayed,
            self.control,
            self.dead,
            self.workers,
        )

    def wake(self, client: str) -> str:
        """The stream by which a client wakes itself out of a blocking read."""
        return self._key(f"wake:{client}")

    def _key(self, name: str) -> str:
        # The braces are Redis Cluster's hash tag: all keys of a partition lie in one slot.
        return f"{{slip:{self.queue}:{self.partition}}}:{name}"


def new_job_id(partition: int = 0, tenant: str = "default") -> str:
    """A fresh id, with 96 random bits, so that no two clients need to know of each other."""
    return f"{partition}.{tenant}.{secrets.token_hex(12)}"


def idempotent_job_id(key: str, partitions: int = 1, tenant: str = "default") -> str:
    """The one id of a tenant's idempotency key, so that a repeat finds the first job, in the partition it is in."""
    digest = hashlib.blake2b(f"{tenant}\n{key}".encode(), digest_size=16)
    partition = int.from_bytes(digest.digest()[:8]) % partitions
    return f"{partition}.{tenant}.key-{digest.hexdigest()}"


def partition_of(job_id: str) -> int:
    """The partition a job lives in. Raises InvalidJob if `job_id` is none."""
    return int(_parts(job_id)["partition"])


def tenant_of(job_id: str) -> str:
    """Whose job it is. Raises InvalidJob if `job_id` is none."""
    return _parts(job_id)["tenant"]


def _parts(job_id: str) -> re.Match[str]:
    match = JOB_ID.fullmatch(job_id)
    if match is None:
        raise InvalidJob("id", job_id, "<partition>.<tenant>.<8 to 64 random characters>")
    return match
