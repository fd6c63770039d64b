"""Following a job's events to their end, and waiting for its result: what to read next, what to make of the answer.

Knows no sockets. A flow is a generator: it yields a Step, is sent the answer (or thrown the RedisError), and returns
its result; Producer and AsyncProducer only differ in how they carry a step out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from producer import calls, wire
from producer.connection import BLOCK_S
from producer.cursor import EndCursor, EventCursor
from producer.errors import JobUnknown, ResultExpired, ResultTimeout
from producer.keys import Keys
from producer.protocol import Ended, Event, Result, Resync, TokenLogprob, Tokens

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a reader keeps coming back to a Redis that is gone before it gives up."""
CLOCKS_DIFFER_S = 60.0
"""How far this machine's clock may be behind Redis' for a late job to be noticed."""
READ_COUNT = 1000
"""Entries a read takes at most, so that a reader far behind does not swallow a long job in one reply."""


@dataclass(frozen=True, slots=True)
class Get:
    """GET: the string at `key`, or None."""

    key: str


@dataclass(frozen=True, slots=True)
class Read:
    """XREAD of one stream after an entry, blocking up to `block_ms` on the reader's own connection: the entries."""

    key: str
    after: str
    block_ms: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, and forget the reader's connection."""

    seconds: float


Step = calls.Call[Any] | Get | Read | Pause
Flow = Generator[Step, Any, T]


class Following:
    """One reader's way through a job's events, across lost connections.

    Raises JobUnknown, ResultExpired, ResultTimeout after `timeout_s` (None: never), and the RedisError once Redis was
    away for PATIENCE_S.
    """

    def __init__(
        self, keys: Keys, job_id: str, cursor: EventCursor | EndCursor, timeout_s: float | None = None
    ) -> None:
        self._keys, self._job_id, self._timeout_s = keys, job_id, timeout_s
        self.cursor = cursor
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._lost_at: float | None = None
        self._losses = 0
        self._met = False
        self._looked = False

    @property
    def ended(self) -> bool:
        """Whether the job's end was read."""
        return self.cursor.ended

    def more(self) -> Flow[list[Event]]:
        """The next events. May be none: ask again until `ended`."""
        try:
            if not self._looked:
                yield from self._look()
            block_s = BLOCK_S if self._deadline is None else min(BLOCK_S, self._deadline - time.monotonic())
            if block_s <= 0:
                raise ResultTimeout(self._job_id, self._timeout_s or 0)
            block_ms = max(1, round(block_s * 1000))
            entries = yield Read(self._keys.tokens(self._job_id), self.cursor.last_entry, block_ms)
            self._lost_at, self._losses = None, 0
            self._looked = bool(entries)
        except (AuthenticationError, NoPermissionError):
            raise
        except RedisError as error:
            yield Pause(self._patience(error))
            return []
        return self.cursor.events(entries)

    def _look(self) -> Flow[None]:
        """Silence or a lost connection may mean that nothing will come, or that we wait at the wrong place."""
        status: calls.JobStatus | None = yield calls.status(self._keys, self._job_id)
        if status is None:
            raise JobUnknown(self._job_id)
        if status.ended and status.last_event is None:
            raise ResultExpired(self._job_id, status.state)
        if not status.ended and status.deadline is not None and time.time() > status.deadline - CLOCKS_DIFFER_S:
            yield from self._expire()
        self.cursor.rewind_if_lost(status)
        self._met = self._looked = True

    def _expire(self) -> Flow[None]:
        """A late job that nobody ends, since no worker is there, is ended by who waits for it; Redis' clock decides."""
        try:
            yield calls.expire(self._keys, self._job_id)
        except NoPermissionError:
            return  # a reader that may only read goes on waiting

    def _patience(self, error: RedisError) -> float:
        """Seconds to wait before the next try. Raises `error` at the first contact, and when patience is over."""
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if not self._met or now - self._lost_at > PATIENCE_S:
            raise error
        self._looked = False
        self._losses += 1
        return min(2.0, 0.05 * 2.0**self._losses) * random.uniform(0.5, 1)


def result_of(keys: Keys, job_id: str, timeout_s: float | None) -> Flow[Result]:
    """The result, as soon as there is one. A job that was ended from outside has none stored: its events tell it."""
    stored = Get(keys.result(job_id))
    blob = yield stored
    if blob is None:
        yield from _to_the_end(Following(keys, job_id, EndCursor(), timeout_s))
        blob = yield stored
    if blob is not None:
        return wire.decode_result(blob, job_id)
    events = yield from _to_the_end(Following(keys, job_id, EventCursor(), timeout_s))
    return told(job_id, events)


def _to_the_end(following: Following) -> Flow[list[Event]]:
    events: list[Event] = []
    while not following.ended:
        events += yield from following.more()
    return events


def told(job_id: str, events: list[Event]) -> Result:
    """The result that a whole list of events amounts to."""
    token_ids: list[int] = []
    pieces: list[str] = []
    logprobs: list[TokenLogprob] = []
    for event in events:
        match event:
            case Tokens():
                token_ids += event.token_ids
                pieces += event.pieces
                logprobs += event.logprobs or ()
            case Resync():
                del token_ids[event.offset :], pieces[event.offset :], logprobs[event.offset :]
    ended = events[-1]
    assert isinstance(ended, Ended), "a following ends with the end"
    return Result(
        job_id=job_id,
        finish_reason=ended.reason,
        text="".join(pieces),
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs) or None,
        error=ended.error,
        usage=ended.usage,
    )
