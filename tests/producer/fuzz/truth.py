"""A book beside Redis: what is so, by the answers that the scripts have given. Knows no Redis.

Every reply of a schedule is held against it, and it is changed by nothing but replies and by what someone did by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

from producer.protocol import Job

HANDED_BACK = "handoff"


@dataclass
class JobTruth:
    """One job. `owner` is worker and epoch; `holder` has its entry pending (a worker, or HANDED_BACK for anyone)."""

    job: Job
    is_poison: bool = False
    """Whoever runs it dies."""
    owner: tuple[str, int] | None = None
    holder: str | None = None
    ended: str | None = None
    """How."""
    ended_by: tuple[str, int] | None = None
    """The owner that did, if one did."""
    delayed: bool = False
    due: bool = False
    late: bool = False
    deliveries: int = 0
    strikes: int = 0
    alone: bool = False
    claim_offset: int = 0
    lost_alone: int = 0
    """Losses at which nothing else ran beside it, and it had added nothing."""
    harm: str | None = None
    """What someone did to its keys by hand: `vanished` (no hash), `hash`, `events` (overwritten)."""
    forgotten: bool = False
    """It ended so long ago that its keys have expired."""
    came_back: bool = False
    """Its hash vanished, and its producer sent it again."""

    @property
    def length(self) -> int:
        """How many tokens it is to have."""
        return length(self.job.id)

    @property
    def is_live(self) -> bool:
        """Whether it still is to end."""
        return self.ended is None and self.harm in (None, "events")

    @property
    def is_known(self) -> bool:
        """Whether its hash is there."""
        return self.harm in (None, "events") and not self.forgotten

    def is_blamed(self, offset: int | None) -> bool:
        """Whether losing its owner now counts against it."""
        return offset == self.claim_offset and (self.strikes == 0 or self.alone)

    def is_lost(self, offset: int | None) -> bool:
        """Its owner is lost: whether it is blamed. `offset`: its tokens now."""
        blamed = self.is_blamed(offset)
        if blamed:
            self.strikes += 1
            self.lost_alone += self.alone
        return blamed

    def end(self, how: str, by: tuple[str, int] | None = None) -> None:
        self.ended, self.ended_by, self.owner, self.holder, self.delayed = how, by, None, None, False


@dataclass
class Truth:
    """All jobs that were accepted, dead letters that lie there (job id, why), and what operators have set."""

    jobs: dict[str, JobTruth] = field(default_factory=dict)
    letters: list[tuple[str, str]] = field(default_factory=list)
    control: dict[str, str] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    """A tenant's jobs on lanes and with workers where they are more than its limit, which was lowered meanwhile."""

    raised: set[str] = field(default_factory=set)
    """Tenants whose limit was raised, which housekeeping has yet to notice."""

    @property
    def live(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.is_live]

    def running_limit(self, tenant: str) -> int | None:
        limit = self.control.get(f"{tenant}:running", self.control.get("tenant_running"))
        return None if limit is None else int(limit)


def length(job_id: str) -> int:
    return crc32(job_id.encode()) % 8


def right(job_id: str, start: int, stop: int) -> list[int]:
    """The one right text of a job: its tokens from `start` to `stop`."""
    seed = crc32(job_id.encode())
    return [(seed + offset * 104_729) % 50_000 for offset in range(start, stop)]
