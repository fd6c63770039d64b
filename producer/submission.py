"""From what a caller says to the Job that is sent, and from many answers to one."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypedDict

from producer.calls import Enqueued
from producer.errors import InvalidJob, QueueFull, SlipstreamError
from producer.keys import TENANT, Keys, Lane, idempotent_job_id, new_job_id, partition_of
from producer.protocol import Job, SamplingParams

CHUNK = 500
"""Jobs that submit_many sends in one round trip."""


class JobFields(TypedDict, total=False):
    """What submit takes: the fields of Job, and those of SamplingParams beside them."""

    id: str
    prompt: str
    messages: Sequence[dict[str, str]]
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    model: str
    lane: Lane
    tenant: str
    result_ttl: float
    not_before: float
    deadline: float
    idempotency_key: str
    idempotency_ttl: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_words: Sequence[str]
    logprobs: int
    max_tokens: int
    seed: int
    min_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


def make_job(job: Job | None, fields: dict[str, Any], partitions: int) -> Job:
    """The job as given, or one made of `fields`, in a partition drawn at random. Raises InvalidJob."""
    if job is not None:
        if fields:
            raise InvalidJob(next(iter(fields)), "a field beside a whole Job", "one or the other")
        return job
    sampling = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.model_fields}
    if sampling:
        if "sampling" in fields:
            raise InvalidJob(next(iter(sampling)), "a field beside sampling=", "one or the other")
        fields["sampling"] = SamplingParams(**sampling)
    tenant = fields.get("tenant", "default")
    if partitions > 1 and isinstance(tenant, str) and TENANT.fullmatch(tenant):
        key = fields.get("idempotency_key")
        fresh = new_job_id(random.randrange(partitions), tenant)
        fields.setdefault("id", idempotent_job_id(key, partitions, tenant) if isinstance(key, str) else fresh)
    return Job(**fields)


class Patience:
    """How long a submit waits for room in the queue: `wait` seconds in all, as long at a time as the queue says."""

    def __init__(self, wait: float) -> None:
        if not 0 <= wait < float("inf"):
            raise InvalidJob("wait", wait, "0 or more seconds")
        self._until = time.monotonic() + wait

    def pause(self, refusal: QueueFull) -> float:
        """Seconds to the next try. Raises `refusal` if there is no time for one."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise refusal
        return min(left, refusal.retry_after * random.uniform(0.5, 1.5))  # else all who were refused come at once


def keys_of(queue: str, partitions: int, job: Job | str) -> Keys:
    """The keys of the partition a job lives in. Raises InvalidJob if the queue has no such partition."""
    job_id = job if isinstance(job, str) else job.id
    if partition_of(job_id) >= partitions:
        raise InvalidJob("id", job_id, f"a partition below {partitions}: the queue has no more")
    return Keys.of(queue, job_id)


def chunks(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """`jobs`, CHUNK at a time."""
    rest = iter(jobs)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def all_accepted(answers: Sequence[Enqueued | SlipstreamError], before: Sequence[str]) -> list[str]:
    """The ids, if every job was accepted; else the first refusal, which a QueueFull tells with all ids accepted."""
    ids = [*before, *(answer.job_id for answer in answers if isinstance(answer, Enqueued))]
    for answer in answers:
        if isinstance(answer, QueueFull):
            raise QueueFull(answer.depth, answer.limit, answer.retry_after, tuple(ids), answer.what)
        if isinstance(answer, SlipstreamError):
            raise answer
    return ids
