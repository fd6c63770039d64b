"""What a worker writes: the tokens of a whole batch, and the end of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from producer.calls.script import Call, script
from producer.calls.take import Delivery
from producer.keys import GROUP, Keys, tenant_of
from producer.protocol import FinishReason


@dataclass(frozen=True, slots=True)
class Publication:
    """Tokens `start` to `start + count` of a job. None new (`count` 0, no blob): ask whether the job is still ours."""

    job_id: str
    epoch: int
    start: int
    count: int
    blob: bytes | None
    """wire.encode_tokens"""


@dataclass(frozen=True, slots=True)
class PublishReply:
    """`ok`: written. `already`: it was, by an earlier send. `fenced`: the job is not ours any more, free its row.

    `gap`: the stream ends at `offset`, not at `start`; publish again what lies after `offset`, from memory.
    `broken`: what lies at the job's keys is no stream, discard it.
    """

    status: Literal["ok", "already", "fenced", "gap", "broken"]
    offset: int
    """Tokens in the stream now."""


def publish(keys: Keys, consumer: str, items: Sequence[Publication]) -> Call[list[PublishReply]]:
    """Publish for all running jobs at once, each judged on its own. Name also those with nothing new."""
    return Call(
        script("publish"),
        tuple(key for item in items for key in (keys.job(item.job_id), keys.tokens(item.job_id))),
        (consumer, *(part for item in items for part in (item.epoch, item.start, item.count, item.blob or b""))),
        lambda answer: [_reply(reply) for reply in zip(answer[::2], answer[1::2], strict=True)],
    )


def finish(
    keys: Keys,
    delivery: Delivery,
    consumer: str,
    epoch: int,
    *,
    start: int,
    count: int = 0,
    tokens: bytes | None = None,
    ended: bytes,
    result: bytes,
    reason: FinishReason,
    why: str = "",
) -> Call[PublishReply]:
    """Publish the last tokens (if any) and the end, store the result, forget the lane's entry: all or nothing.

    `ended` is wire.encode_ended, `result` wire.encode_result. The job's own `result_ttl` applies. A re-sent finish
    answers `already`; the rest as for publish. With reason `dead` it becomes a dead letter too, `why` in a word.
    """
    job_id, lane, entry, _ = delivery
    return Call(
        script("finish"),
        keys.about(job_id),
        (
            *(GROUP, job_id, tenant_of(job_id), consumer, epoch, entry, lane),
            *(start, count, tokens or b"", ended, result, reason, why),
        ),
        _reply,
    )


def _reply(answer: Any) -> PublishReply:
    outcome, offset = answer
    return PublishReply(outcome.decode(), int(offset))
