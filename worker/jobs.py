"""A job while this worker has it: what was decided about it, its tokens and text so far, and what readers have seen.

Knows the protocol's words, but runs no call and knows no engine.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from producer import wire
from producer.calls import Claim, Delivery, PublishReply, finish
from producer.calls.script import Call
from producer.keys import Keys
from producer.logprobs import Logprob, plain
from producer.protocol import (
    Failure,
    FinishReason,
    Job,
    Result,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
    running_hash,
)
from worker.text import BadPrompt, TextModel, TextStream

PRIORITY = {"high": 0, "normal": 1, "low": 2}
_LEAST_TOP_P = 2.0**-126  # fp32's least: less would be 0 there, and leave not even the likeliest token


class JobRefused(Exception):
    """The job can't be answered as it is: it ends as `failed` with this code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the first owner decided and every later one goes by, so that nothing is decided twice.

    prompt_ids and SequenceParams' fields (worker/engine/sequence.py), and the stop strings.
    """

    prompt_ids: list[int]
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop_ids: list[int]
    stop: list[str]
    # what follows is missing where an older worker decided
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: list[tuple[int, float]] = field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    bad_words: list[list[int]] = field(default_factory=list)
    logprobs: int | None = None

    def pack(self) -> bytes:
        """As `resolve` stores it."""
        packed: bytes = msgpack.packb(asdict(self))
        return packed

    @classmethod
    def unpack(cls, blob: bytes) -> Resolved:
        """What `pack` gave."""
        return cls(**msgpack.unpackb(blob))

    @property
    def params(self) -> dict[str, Any]:
        """SequenceParams' fields."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in ("prompt_ids", "stop")}
        allowed = self.allowed_token_ids
        return {
            **fields,
            "stop_ids": frozenset(self.stop_ids),
            "logit_bias": tuple((token, value) for token, value in self.logit_bias),
            "allowed_token_ids": None if allowed is None else tuple(allowed),
            "bad_words": tuple(map(tuple, self.bad_words)),
        }


def decide(job: Job, text: TextModel, served_name: str, max_len: int) -> Resolved:
    """Prompt ids, and every value the job left open. The job's own come first, then the model's defaults.

    Raises JobRefused for what this model can't answer.
    """
    if job.model is not None and job.model != served_name:
        raise JobRefused(
            "model_not_served", f"model: this queue serves {served_name!r}, the job asks for {job.model!r}"
        )
    try:
        prompt = _prompt_ids(job, text)
        own, default = job.sampling, text.defaults
        _check_ids(own, text.vocab_size)
        ends = () if own.ignore_eos else text.eos_ids
        return Resolved(
            prompt_ids=prompt,
            max_tokens=_max_tokens(own.max_tokens, default.max_tokens, len(prompt), max_len),
            min_tokens=own.min_tokens,
            temperature=_first(own.temperature, default.temperature),
            top_k=_first(own.top_k, default.top_k),
            top_p=max(_first(own.top_p, default.top_p), _LEAST_TOP_P),
            min_p=_first(own.min_p, default.min_p),
            seed=own.seed if own.seed is not None else secrets.randbits(63),
            stop_ids=sorted({*ends, *own.stop_token_ids}),
            stop=list(own.stop),
            repetition_penalty=_first(own.repetition_penalty, default.repetition_penalty),
            frequency_penalty=own.frequency_penalty,
            presence_penalty=own.presence_penalty,
            logit_bias=list((own.logit_bias or {}).items()),
            allowed_token_ids=None if own.allowed_token_ids is None else list(own.allowed_token_ids),
            bad_words=text.token_runs(own.bad_words),
            logprobs=own.logprobs,
        )
    except BadPrompt as error:
        raise JobRefused(error.code, str(error)) from None


def _check_ids(sampling: SamplingParams, vocab_size: int) -> None:
    """Raises JobRefused for an id that the model doesn't have."""
    given: dict[str, Iterable[int]] = {
        "stop_token_ids": sampling.stop_token_ids,
        "logit_bias": sampling.logit_bias or (),
        "allowed_token_ids": sampling.allowed_token_ids or (),
    }
    for field_name, ids in given.items():
        outside = next((token for token in ids if token >= vocab_size), None)
        if outside is not None:
            message = f"{field_name}: {outside} is outside the vocabulary (0 to {vocab_size - 1})"
            raise JobRefused("token_outside_vocabulary", message)


def _prompt_ids(job: Job, text: TextModel) -> list[int]:
    if job.prompt is not None:
        return text.encode_prompt(job.prompt)
    if job.messages is not None:
        return text.encode_messages([message.model_dump() for message in job.messages])
    assert job.prompt_token_ids is not None
    return text.check_ids(job.prompt_token_ids)


def _max_tokens(asked: int | None, default: int | None, prompt: int, max_len: int) -> int:
    """The job's limit, else the model's as far as there is room, else all there is room for."""
    room = max_len - prompt
    if room < 1:
        message = f"prompt: {prompt} tokens leave no room to answer; this worker takes {max_len} with the answer"
        raise JobRefused("prompt_too_long", message)
    if asked is not None and asked > room:
        message = (
            f"max_tokens: prompt ({prompt}) and max_tokens ({asked}) are {prompt + asked} tokens; "
            f"this worker takes {max_len} (the model's length or its page pool, whichever is less)"
        )
        raise JobRefused("too_long", message)
    return asked if asked is not None else min(default or room, room)


def _first(own: Any, default: Any) -> Any:
    return own if own is not None else default


@dataclass(frozen=True)
class Refusal:
    """A claimed job that ends without running: as `failed`, or as `dead`, `why` in a word."""

    delivery: Delivery
    epoch: int
    offset: int
    failure: Failure
    why: str | None = None
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None

    def finish_call(self, keys: Keys, consumer: str) -> Call[PublishReply]:
        """The call that ends it."""
        reason: FinishReason = "failed" if self.why is None else "dead"
        result = Result(
            job_id=self.delivery.job_id,
            finish_reason=reason,
            text=self.text,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            error=self.failure,
        )
        return finish(
            keys,
            self.delivery,
            consumer,
            self.epoch,
            start=self.offset,
            ended=wire.encode_ended(reason, self.failure),
            result=wire.encode_result(result),
            reason=reason,
            why=self.why or "",
        )


@dataclass(eq=False)
class RunningJob:
    """A claimed job. Tokens up to `published` are in its stream; the rest is ours to publish."""

    sequence_id: int
    delivery: Delivery
    epoch: int
    lane_priority: int
    resolved: Resolved
    stream: TextStream
    queued_s: float  # from enqueue to this claim
    strikes: int = 0  # workers it has cost
    time_left_s: float = math.inf  # from this claim to its deadline
    token_ids: list[int] = field(default_factory=list)  # released by the text stream: published or about to be
    texts: list[str] = field(default_factory=list)  # the text each of them added
    logprobs: list[Logprob] = field(default_factory=list)  # of all tokens it was given, if asked for: these first
    published: int = 0
    claimed_offset: int = 0  # tokens it had when it came here
    hash: int = 0  # running_hash of token_ids
    ended: tuple[FinishReason, Failure | None] | None = None
    claimed_at: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None  # from enqueue
    cached_tokens: int = 0  # of its prompt, found in the engine's prefix cache

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.delivery.job_id

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed, as far as this machine's clock can tell."""
        return time.monotonic() - self.claimed_at > self.time_left_s

    @property
    def is_suspect(self) -> bool:
        """Whether it has cost a worker and not shown since that it can do without: it has to run alone."""
        return self.strikes > 0 and self.published <= self.claimed_offset and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether only its end is left to publish."""
        return self.ended is not None

    @property
    def unpublished(self) -> int:
        """Tokens that readers have not seen."""
        return len(self.token_ids) - self.published

    def take(
        self,
        token_ids: Sequence[int],
        reason: str | None,
        error: str | None,
        logprobs: Sequence[Logprob] | None = None,
    ) -> bool:
        """The engine's tokens, and its end if it has come. True: the text has ended it, unknown to the engine."""
        if logprobs is not None:
            self.logprobs += logprobs
        self._release(self.stream.push(token_ids))
        if self.stream.stopped:
            self._end("stop")
        elif reason in ("stop", "length"):
            self._release(self.stream.finish())
            self._end("stop" if reason == "stop" else "length")
        elif reason is not None:
            self.fail("generation_failed", error or "the engine gave the job up")
        return self.stream.stopped and reason is None

    def fail(self, code: str, message: str) -> None:
        """End it as failed; tokens held back for a text still open go out first."""
        self._release(self.stream.finish())
        self.end_as_failed(code, message)

    def end_as_failed(self, code: str, message: str) -> None:
        """End it as failed with what has been released, and ask nothing more of its text."""
        self.ended = ("failed", Failure(code=code, message=message))

    def resume(self, claim: Claim) -> None:
        """Take over the tokens an earlier owner published, and replay every rule of ending over them.

        Raises Undecodable, and ValueError where log-probabilities are missing.
        """
        for blob in claim.tokens:
            tokens = wire.decode_tokens(blob, claim.offset)
            self.token_ids += tokens.token_ids
            self.texts += tokens.pieces
            if self.resolved.logprobs is not None:
                if tokens.logprobs is None:
                    raise ValueError("tokens without log-probabilities, which this job asks for")
                self.logprobs += plain(tokens.logprobs)
        self.published = self.claimed_offset = len(self.token_ids)
        self.hash = running_hash(0, self.token_ids)
        self.stream.replay(self.token_ids)
        done = len(self.token_ids)
        at_stop_id = done > self.resolved.min_tokens and self.token_ids[-1] in self.resolved.stop_ids
        if self.stream.stopped or at_stop_id:
            self._end("stop")
        elif done >= self.resolved.max_tokens:
            self._end("length")

    def begin_again(self, text: TextModel) -> None:
        """Forget tokens that its text held back: it is given to the engine anew, with those that were released."""
        resolved = self.resolved
        self.stream = text.stream(resolved.prompt_ids, resolved.stop, resolved.min_tokens)
        self.stream.replay(self.token_ids)
        del self.logprobs[len(self.token_ids) :]

    def tokens_blob(self) -> bytes | None:
        """What is to be published, or None where that is nothing."""
        if not self.unpublished:
            return None
        ids, texts = self.token_ids[self.published :], self.texts[self.published :]
        return wire.encode_tokens(ids, texts, self.hash, self._logprobs(self.published))

    def _logprobs(self, start: int) -> list[Logprob] | None:
        """Of the tokens released from `start` on; None where nobody asked."""
        return None if self.resolved.logprobs is None else self.logprobs[start : len(self.token_ids)]

    def finish_call(self, keys: Keys, consumer: str) -> Call[PublishReply]:
        """The call that publishes the rest and ends it. The job has ended."""
        assert self.ended is not None
        reason, failure = self.ended
        return finish(
            keys,
            self.delivery,
            consumer,
            self.epoch,
            start=self.published,
            count=self.unpublished,
            tokens=self.tokens_blob(),
            ended=wire.encode_ended(reason, failure, self.usage),
            result=self._result_blob(),
            reason=reason,
        )

    def _result_blob(self) -> bytes:
        assert self.ended is not None
        reason, failure = self.ended
        total = self.queued_s + time.monotonic() - self.claimed_at
        return wire.encode_result(
            Result(
                job_id=self.job_id,
                finish_reason=reason,
                text="".join(self.texts),
                token_ids=tuple(self.token_ids),
                error=failure,
                usage=self.usage,
                timings=Timings(queued_s=self.queued_s, first_token_s=self.first_token_s, total_s=total),
            ),
            self._logprobs(0),
        )

    @property
    def usage(self) -> Usage:
        """Tokens in and out so far."""
        return Usage(
            prompt_tokens=len(self.resolved.prompt_ids),
            completion_tokens=len(self.token_ids),
            cached_tokens=self.cached_tokens,
        )

    def _release(self, piece: Any) -> None:
        if not piece.token_ids:
            return
        if self.first_token_s is None:
            self.first_token_s = self.queued_s + time.monotonic() - self.claimed_at
        self.token_ids += piece.token_ids
        self.texts += piece.texts
        self.hash = running_hash(self.hash, piece.token_ids)

    def _end(self, reason: FinishReason) -> None:
        self.ended = (reason, None)
