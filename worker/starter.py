"""Gives jobs to the engine: all at once, but a job that has cost a worker alone, until it has added a token.

So only the job that kills workers is ever blamed twice, and its neighbours lose a moment. Those that ran already step
aside meanwhile: they stay this worker's, with their tokens, and go on where they were.
"""

from __future__ import annotations

import redis as sync_redis
import structlog

from producer.calls import alone, run
from worker.engine_link import EngineLink
from worker.inbox import Inbox
from worker.jobs import RunningJob
from worker.outbox import Outbox
from worker.partitions import Partitions
from worker.text import TextModel

log = structlog.get_logger()


class Starter:
    """Jobs of the outbox that are to run, and the one that runs alone, if any."""

    def __init__(
        self,
        redis: sync_redis.Redis,
        partitions: Partitions,
        consumer: str,
        engine: EngineLink,
        text: TextModel,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        self._redis, self._partitions, self._consumer = redis, partitions, consumer
        self._engine, self._text, self._inbox, self._outbox = engine, text, inbox, outbox
        self._waiting: list[RunningJob] = []
        self._alone: RunningJob | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether jobs that are here do not run yet."""
        return bool(self._waiting)

    def runs(self, job: RunningJob) -> bool:
        """Whether the engine has a job."""
        return not job.has_ended and job not in self._waiting

    def add(self, job: RunningJob) -> None:
        """Have a job of the outbox run, as soon as it may."""
        self._waiting.append(job)

    def start(self) -> None:
        """Start what may run now. Raises redis.RedisError: nothing is lost, call again."""
        self._waiting = [job for job in self._waiting if self._is_ours(job)]
        if self._alone is not None and self._is_ours(self._alone) and self._alone.is_suspect:
            return
        self._alone = None
        suspect = next((job for job in self._waiting if job.is_suspect), None)
        if suspect is None:
            for job in self._waiting:
                self._give(job)
            self._waiting.clear()
            return
        log.warning("job_alone", job=suspect.job_id, strikes=suspect.strikes, aside=self._step_aside())
        keys = self._partitions.of(suspect.delivery)
        if run(self._redis, alone(keys, suspect.job_id, suspect.epoch, self._consumer)):
            self._alone = suspect
            self._waiting.remove(suspect)
            self._give(suspect)

    def _is_ours(self, job: RunningJob) -> bool:
        return self._outbox.jobs.get(job.sequence_id) is job and not job.has_ended

    def _step_aside(self) -> int:
        """Take all that runs out of the engine; how many."""
        running = [job for job in self._outbox.jobs.values() if self.runs(job)]
        self._engine.cancel(job.sequence_id for job in running)
        for job in running:
            self._outbox.renumber(job, self._inbox.next_id())
            job.begin_again(self._text)
        self._waiting += running
        return len(running)

    def _give(self, job: RunningJob) -> None:
        resolved = job.resolved
        self._engine.add(job.sequence_id, resolved.prompt_ids, job.token_ids, resolved.params, job.lane_priority)
