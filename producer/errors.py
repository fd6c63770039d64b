"""Everything this package raises, as one tree. Every message says what happened, expected against got, and what to do.

SlipstreamError
├── InvalidJob              a field of a job has a value it cannot have
├── Undecodable             bytes from Redis are not what they should be
│   └── NewerProtocol       ... because whoever wrote them speaks a later version
├── QueueFull               the queue holds as many jobs as it may
├── IdempotencyConflict     the id is taken by another job
├── JobUnknown              no such job: never submitted, or forgotten since
│   └── ResultExpired       the job ended and its result is kept no longer
├── ResultTimeout           the wait is over, the job is not
├── RedisUnavailable        no answer from Redis, or a refusal
└── JobEnded                raised by `Result.raise_for_failure()` alone
    ├── JobFailed
    ├── JobCancelled
    ├── JobExpired
    └── JobDead
"""

from __future__ import annotations


class SlipstreamError(Exception):
    """Whatever goes wrong here is one of these."""


class InvalidJob(SlipstreamError):
    """A field of a job has a value that it cannot have. Correct the field and submit again."""

    def __init__(self, field: str, got: object, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}, got {shorten(got)}")
        self.field, self.got, self.expected = field, got, expected


class Undecodable(SlipstreamError):
    """Bytes that should be a job, an event or a result and are not. `field` is named where only one is wrong."""

    def __init__(self, what: str, reason: str, field: str | None = None) -> None:
        super().__init__(f"this is no {what}: {reason}")
        self.what, self.reason, self.field = what, reason, field


class NewerProtocol(Undecodable):
    """Written by a later version. A worker hands such a job back for a newer worker; a reader has to be upgraded."""

    def __init__(self, what: str, version: object, known: int) -> None:
        super().__init__(what, f"its protocol version is {version}, this side knows up to {known}: upgrade it", "v")
        self.version = version


class QueueFull(SlipstreamError):
    """The queue holds as much as it may. Nothing was written; submit the same job again after `retry_after` s.

    `what` is full: depth (live jobs), bytes (of their payloads), memory (Redis', in percent), tenant (its waiting
    jobs); `depth` is how much of that there is, `limit` how much there may be.
    """

    def __init__(
        self, depth: int, limit: int, retry_after: float, accepted: tuple[str, ...] = (), what: str = "depth"
    ) -> None:
        unit = {"bytes": "bytes of payloads", "memory": "% of Redis' memory", "tenant": "waiting jobs of the tenant"}
        more = f" ({len(accepted)} of this call's jobs were accepted)" if accepted else ""
        super().__init__(
            f"the queue is full: {depth} {unit.get(what, 'jobs')}, limit {limit}{more}; try again in {retry_after:g} s"
        )
        self.depth, self.limit, self.retry_after, self.accepted, self.what = depth, limit, retry_after, accepted, what


class IdempotencyConflict(SlipstreamError):
    """The id was used before, for a job with other content. The first job is untouched; choose another id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} was submitted before with other content: submit this one under another id")
        self.job_id = job_id


class JobUnknown(SlipstreamError):
    """No such job in this queue: the id is wrong, it is another queue's, or the job ended long ago."""

    def __init__(self, job_id: str, reason: str = "check the id and the queue; jobs are forgotten a day after") -> None:
        super().__init__(f"no job {job_id}: {reason}")
        self.job_id = job_id


class ResultExpired(JobUnknown):
    """The job ended, and its events and result are kept no longer than its `result_ttl`."""

    def __init__(self, job_id: str, state: str) -> None:
        super().__init__(job_id, f"it ended ({state}) and its result is kept no longer; ask for a longer result_ttl")
        self.state = state


class ResultTimeout(SlipstreamError):
    """The job has not ended within the time given. It goes on; ask again, or cancel it."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(f"{job_id} has not ended within {timeout_s:g} s; it goes on: ask again, or cancel it")
        self.job_id, self.timeout_s = job_id, timeout_s


class RedisUnavailable(SlipstreamError):
    """Redis does not answer, or refuses. Jobs that were accepted are safe with it; try again once it is back."""


class JobEnded(SlipstreamError):
    """A job ended without the answer that was asked for."""

    outcome = "ended"

    def __init__(self, job_id: str, code: str | None = None, message: str | None = None) -> None:
        because = f": {message}" if message else ""
        named = f" ({code})" if code else ""
        super().__init__(f"job {job_id} {self.outcome}{named}{because}")
        self.job_id, self.code, self.message = job_id, code, message


class JobFailed(JobEnded):
    """The job cannot be answered as it is: `code` and `message` say why. Submitting it again unchanged fails again."""

    outcome = "failed"


class JobCancelled(JobEnded):
    """Someone cancelled the job."""

    outcome = "was cancelled"


class JobExpired(JobEnded):
    """The job's deadline passed before it was answered."""

    outcome = "expired"


class JobDead(JobEnded):
    """Several workers were lost over this job; it lies among the dead letters for someone to look at."""

    outcome = "was dead-lettered"


def shorten(value: object, limit: int = 80) -> str:
    """`value` as it may stand in a one-line message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
