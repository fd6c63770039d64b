"""The way out: tokens from the engine become text, and batches of both go to the jobs' result streams.

Everything is kept until Redis has confirmed it, so a flush that failed is simply made again: what arrived is answered
`already`, what is missing in the stream is published from memory, and what is not ours any more is let go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis as sync_redis
import structlog

from producer.calls import Held, Publication, PublishReply, discard, expire, publish, run, run_many
from producer.errors import SlipstreamError
from worker.engine_link import Emission
from worker.jobs import Refusal, RunningJob
from worker.partitions import Partitions

log = structlog.get_logger()


class Outbox:
    """The jobs that run here and what readers are still to see of them."""

    def __init__(self, redis: sync_redis.Redis, partitions: Partitions, consumer: str) -> None:
        self._redis, self._partitions, self._consumer = redis, partitions, consumer
        self.jobs: dict[int, RunningJob] = {}
        self._refused: list[Refusal] = []
        self._lost: list[int] = []  # sequences to be answered by the next flush that succeeds
        self.urgent = False  # a first token or an end is waiting: flush at once
        self.finished = 0
        self.published_tokens = 0

    @property
    def held(self) -> list[Held]:
        """What is ours, for renewal and hand-back."""
        return [
            *(Held(job.delivery, job.epoch) for job in self.jobs.values()),
            *(Held(refusal.delivery, refusal.epoch) for refusal in self._refused),
        ]

    @property
    def unpublished(self) -> int:
        """Tokens that are held until Redis takes them."""
        return sum(job.unpublished for job in self.jobs.values())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing more to publish."""
        return not self.jobs and not self._refused

    def add(self, job: RunningJob) -> None:
        """From now on this job's tokens come here."""
        self.jobs[job.sequence_id] = job
        self.urgent = self.urgent or job.has_ended

    def refuse(self, refusal: Refusal) -> None:
        """End a job that has not run, at the next flush."""
        self._refused.append(refusal)
        self.urgent = True

    def take(self, emissions: Iterable[Emission]) -> list[int]:
        """A step's tokens. Returns the sequences that their text has ended: the engine may forget them."""
        stopped = []
        for sequence_id, token_ids, reason, error, cached_tokens, logprobs in emissions:
            job = self.jobs.get(sequence_id)
            if job is None or job.has_ended:
                continue
            job.cached_tokens = cached_tokens
            try:
                if job.take(token_ids, reason, error, logprobs):
                    stopped.append(sequence_id)
            except Exception as surprise:  # the tokenizer's; this job ends, its neighbours don't
                log.exception("job_surprised_us", job=job.job_id)
                job.end_as_failed("internal", f"{type(surprise).__name__}: {surprise}")
                stopped.append(sequence_id)
            self.urgent = self.urgent or job.has_ended or (job.published == 0 and job.unpublished > 0)
        return stopped

    def fail(self, sequence_id: int, code: str, message: str) -> None:
        """End a job that the engine refused, if it is still ours."""
        if job := self.jobs.get(sequence_id):
            job.fail(code, message)
            self.urgent = True

    def flush(self) -> list[int]:
        """Publish what is new, end what has ended. Returns the sequences that are not ours any more.

        Also jobs with nothing new are named, and so learn that they were cancelled. Raises redis.RedisError: nothing
        is lost, flush again.
        """
        self.urgent = False
        self._expire([job for job in self.jobs.values() if job.is_late and not job.has_ended])
        self._publish([job for job in self.jobs.values() if not job.has_ended])
        self._finish([job for job in self.jobs.values() if job.has_ended])
        self._finish_refused()
        lost, self._lost = self._lost, []
        return lost

    def _expire(self, jobs: list[RunningJob]) -> None:
        """End what is late; the publish that follows tells which jobs are still ours."""
        if jobs:
            run_many(self._redis, [expire(self._partitions.of(job.delivery), job.job_id) for job in jobs])

    def _publish(self, jobs: list[RunningJob]) -> None:
        if not jobs:
            return
        parts = self._partitions.split(jobs, lambda job: job.delivery)
        calls = [publish(keys, self._consumer, [_publication(job) for job in part]) for keys, part in parts]
        answers = run_many(self._redis, calls)
        for (_, part), replies in zip(parts, answers, strict=True):
            if isinstance(replies, SlipstreamError):
                raise replies
            for job, reply in zip(part, replies, strict=True):
                if not self._settle(job, reply):
                    self._lost.append(job.sequence_id)

    def _finish(self, jobs: list[RunningJob]) -> None:
        calls = [job.finish_call(self._partitions.of(job.delivery), self._consumer) for job in jobs]
        answers = run_many(self._redis, calls) if calls else []
        for job, reply in zip(jobs, answers, strict=True):
            if isinstance(reply, SlipstreamError):
                raise reply
            if self._settle(job, reply) and reply.status != "gap":
                assert job.ended is not None
                del self.jobs[job.sequence_id]
                self.finished += 1
                log.info("job_ended", job=job.job_id, reason=job.ended[0], **job.usage.model_dump())

    def _finish_refused(self) -> None:
        if self._refused:
            keys_of, consumer = self._partitions.of, self._consumer
            run_many(self._redis, [each.finish_call(keys_of(each.delivery), consumer) for each in self._refused])
            self.finished += len(self._refused)
            self._refused.clear()

    def renumber(self, job: RunningJob, sequence_id: int) -> None:
        """Know a job's sequence by another number: what the engine still says of the old one is not heard."""
        del self.jobs[job.sequence_id]
        job.sequence_id = sequence_id
        self.jobs[sequence_id] = job

    def _settle(self, job: RunningJob, reply: PublishReply) -> bool:
        """Note what the stream has of a job now; False where it is not ours any more."""
        match reply.status:
            case "ok" | "already":
                self.published_tokens += job.unpublished
                job.published = len(job.token_ids)
            case "gap" if reply.offset <= len(job.token_ids):
                # The stream ends before what we had published: a failover lost its tail. Publish that again.
                log.warning("gap_healed", job=job.job_id, stream_at=reply.offset, published=job.published)
                job.published, self.urgent = reply.offset, True
            case "broken":
                why = "what lies at the key of its events is no stream"
                log.error("job_broken", job=job.job_id, error=why, next="it becomes a dead letter")
                run(self._redis, discard(self._partitions.of(job.delivery), job.delivery, why))
                del self.jobs[job.sequence_id]
                return False
            case _:
                log.info("job_lost", job=job.job_id, reason="cancelled, expired, or taken over by another worker")
                del self.jobs[job.sequence_id]
                return False
        return True

    def load(self) -> dict[str, Any]:
        """Counters as plain values."""
        return {"jobs": len(self.jobs), "finished": self.finished, "published_tokens": self.published_tokens}


def _publication(job: RunningJob) -> Publication:
    return Publication(job.job_id, job.epoch, job.published, job.unpublished, job.tokens_blob())
