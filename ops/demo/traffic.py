"""The demo's client: submits jobs in waves, follows them all over one connection, and knows which sits in which row.

One look at Redis (`Traffic.look`) is one XREAD over the streams of all jobs that have not ended; what it brings is told
in jobs, rows and lanes. Shows nothing and starts nothing.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import msgpack

from ops.demo.supply import DemoJob, Supply
from producer import Ended, Producer, Tokens, wire
from producer.calls import run, workers
from producer.connection import connect, speaking_to
from producer.cursor import EventCursor
from producer.keys import Keys, Lane
from producer.protocol import Timings

LOW_WATER_S = 1.5  # a new wave comes when less than this much work waits
WAVE_S = 3.0  # work in a wave
FIRST_WAVE = 4  # jobs per row, before anything is measured
STALLED_AFTER_S = 60.0
_RESULTS_AT_ONCE = 100


class Stalled(Exception):
    """Nothing has come for STALLED_AFTER_S although jobs are open."""


@dataclass(eq=False)
class Followed:
    """A submitted job and what has come of it."""

    asked: DemoJob
    cursor: EventCursor = field(default_factory=EventCursor)
    claimed_at: float = 0.0  # Unix seconds, by Redis' clock
    text: str = ""
    fresh: int = 0  # characters that the last look has added
    ended: Ended | None = None
    timings: Timings | None = None  # once all is over

    @property
    def exact(self) -> bool:
        """Whether it ended by itself with the right answer, to the character."""
        return self.ended is not None and self.ended.reason == "stop" and self.asked.example.is_answered_by(self.text)

    @property
    def tokens(self) -> int:
        """Tokens of the answer so far."""
        return self.cursor.offset


class Traffic:
    """`seconds` of jobs for a worker with `rows` rows."""

    def __init__(self, url: str, queue: str, rows: int, seconds: float, supply: Supply) -> None:
        self.rows: list[Followed | None] = [None] * rows  # who sits there, or sat there last
        self.jobs: list[Followed] = []
        self.waiting: Counter[Lane] = Counter()  # no token yet
        self.finished: Counter[Lane] = Counter()
        self.exact = 0
        self.tokens = 0
        self.waves = 0
        self._seconds, self._supply, self._url = seconds, supply, url
        self._keys = Keys(queue)
        self._producer = Producer(url, queue=queue)
        self._redis = connect(url)
        self._open: dict[bytes, Followed] = {}  # by their stream
        self._standing: list[Followed] = []  # begun, but not in a row yet
        self._began = self._heard = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)])  # (elapsed, tokens) of the last second or so

    def close(self) -> None:
        """Close the connections."""
        self._producer.close()
        self._redis.close()

    @property
    def elapsed(self) -> float:
        """Seconds since `begin`."""
        return time.monotonic() - self._began

    @property
    def tokens_per_s(self) -> float:
        """Over the last second."""
        (then, before), (now, tokens) = self._recent[0], self._recent[-1]
        return (tokens - before) / (now - then) if now > then else 0.0

    @property
    def in_rows(self) -> int:
        """Rows in use."""
        return sum(1 for job in self.rows if job is not None and job.ended is None)

    @property
    def is_over(self) -> bool:
        """Whether the time is full and every job has ended."""
        return not self._open

    def worker_load(self) -> dict[str, Any] | None:
        """The counters of the one worker's last heartbeat (each second), or None before its first."""
        with speaking_to(self._url):
            alive = run(self._redis, workers(self._keys))
        return next((msgpack.unpackb(info) for info in alive.values()), None)

    def begin(self) -> None:
        """Start the clock and submit the first wave."""
        self._began = self._heard = time.monotonic()
        self._submit(FIRST_WAVE * len(self.rows))

    def look(self) -> None:
        """Take in what is new, and submit another wave where it is time. Raises RedisUnavailable and Stalled."""
        streams: dict[Any, Any] = {stream: job.cursor.last_entry for stream, job in self._open.items()}
        with speaking_to(self._url):
            replies: Any = self._redis.xread(streams) if streams else []
        for job in self.rows:
            if job is not None:
                job.fresh = 0
        if replies:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > STALLED_AFTER_S:
            raise Stalled(f"no token for {STALLED_AFTER_S:.0f} s with {len(self._open)} jobs open")
        for stream, entries in replies:
            self._take(stream, entries)
        self._seat()
        self._recent.append((self.elapsed, self.tokens))
        while len(self._recent) > 2 and self._recent[0][0] < self.elapsed - 1:
            self._recent.popleft()
        self._submit(self._wave())

    def collect_timings(self) -> None:
        """When each job was claimed, had its first token and ended, from the stored results."""
        for first in range(0, len(self.jobs), _RESULTS_AT_ONCE):
            some = self.jobs[first : first + _RESULTS_AT_ONCE]
            with speaking_to(self._url):
                blobs: Any = self._redis.mget([self._keys.result(job.asked.job.id) for job in some])
            for job, blob in zip(some, blobs, strict=True):
                result = wire.decode_result(blob, job.asked.job.id)
                assert result.text == job.text, f"{job.asked.job.id}: the stream and the result differ"
                job.timings = result.timings

    def _take(self, stream: bytes, entries: Any) -> None:
        """One stream's new entries."""
        job = self._open[stream]
        if not job.claimed_at:
            job.claimed_at = int(entries[0][0].split(b"-")[0]) / 1000  # a first epoch is the time of its claim
        lane = job.asked.job.lane
        for event in job.cursor.events(entries):
            match event:
                case Tokens():
                    if event.start == 0:
                        self.waiting[lane] -= 1
                        self._standing.append(job)
                    self.tokens += len(event.token_ids)
                    job.text += event.text
                    job.fresh += len(event.text)
                case Ended():
                    self._end(job, event)
                    del self._open[stream]

    def _end(self, job: Followed, ended: Ended) -> None:
        lane = job.asked.job.lane
        if not job.tokens:  # failed without a token
            self.waiting[lane] -= 1
        job.ended = ended
        self.finished[lane] += 1
        self.exact += job.exact

    def _seat(self) -> None:
        """Give those who stand the lowest free rows.

        A worker publishes a first token before the end that made room for it, so for a moment there may be more jobs
        than rows; and a job that came and went between two looks needs no row any more.
        """
        standing = [job for job in self._standing if job.ended is None]
        free = [row for row, job in enumerate(self.rows) if job is None or job.ended is not None]
        for row, job in zip(free, standing, strict=False):
            self.rows[row] = job
        self._standing = standing[len(free) :]

    def _wave(self) -> int:
        """Jobs to submit now, so that the queue neither runs empty before the time is full nor lasts beyond it."""
        finished = sum(self.finished.values())
        if not finished:
            return 0
        per_s = finished / self.elapsed
        waiting_s = sum(self.waiting.values()) / per_s
        if waiting_s > LOW_WATER_S:
            return 0
        left_s = self._seconds - self.elapsed - waiting_s
        return round(per_s * min(WAVE_S, left_s)) if left_s > 0.5 else 0

    def _submit(self, count: int) -> None:
        if not count:
            return
        self.waves += 1
        wave = [Followed(asked) for asked in self._supply.take(count)]
        self._producer.submit_many(job.asked.job for job in wave)
        for job in wave:
            self.waiting[job.asked.job.lane] += 1
            self._open[self._keys.tokens(job.asked.job.id).encode()] = job
        self.jobs += wave
