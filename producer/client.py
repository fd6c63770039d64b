"""Submit jobs, follow their tokens, get their results: `Producer`, and `AsyncProducer` for asyncio.

    with Producer() as producer:
        job = producer.submit(prompt="Once upon a time", max_tokens=64)
        for event in producer.stream(job):
            ...

What happens is described once, in calls/ and follow.py. The two classes differ only in how they wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Self, TypeVar, Unpack, cast

import redis as sync_redis
from redis.exceptions import RedisError

from producer import calls
from producer.calls import Call, CancelReply, Enqueued, JobStatus
from producer.connection import (
    DEFAULT_URL,
    TIMEOUT_S,
    aconnect,
    aconnect_to_block,
    connect,
    connect_to_block,
    speaking_to,
)
from producer.cursor import Entry, EventCursor
from producer.errors import InvalidJob, JobUnknown, QueueFull
from producer.follow import READ_COUNT, Flow, Following, Get, Pause, Read, Step, result_of
from producer.followers import Followers, Reader
from producer.keys import Keys
from producer.protocol import Event, Job, Result
from producer.questions import Questions
from producer.submission import JobFields, Patience, all_accepted, chunks, keys_of, make_job

T = TypeVar("T")


class _Client:
    """What the two clients share: which queue, and the calls for it."""

    def __init__(self, url: str, queue: str, partitions: int, timeout_s: float) -> None:
        self.url, self.queue, self.partitions, self.timeout_s = url, queue, partitions, timeout_s

    def _keys(self, job: Job | str) -> Keys:
        return keys_of(self.queue, self.partitions, job)

    def _enqueue(self, job: Job) -> Call[Enqueued]:
        return calls.enqueue(self._keys(job), job)

    def _cancel(self, job: Job | str, reason: str) -> Call[CancelReply]:
        return calls.cancel(self._keys(job), _id(job), reason)

    def _status(self, job: Job | str) -> Call[JobStatus | None]:
        return calls.status(self._keys(job), _id(job))

    def _following(self, job: Job | str, from_offset: int, from_hash: int | None, timeout: float | None) -> Following:
        if from_offset < 0:
            raise InvalidJob("from_offset", from_offset, "0 or more tokens")
        return Following(self._keys(job), _id(job), EventCursor(from_offset, from_hash), timeout)

    def _result(self, job: Job | str, timeout: float | None) -> Flow[Result]:
        return result_of(self._keys(job), _id(job), timeout)


class Producer(_Client):
    """A client of one queue. May be shared between threads. Opens no connection before it needs one.

    Every method raises RedisUnavailable where Redis does not answer, and InvalidJob for what is no job or no job's id.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue: str = "default", partitions: int = 1, timeout_s: float = TIMEOUT_S
    ) -> None:
        super().__init__(url, queue, partitions, timeout_s)
        self._redis = connect(url, timeout_s=timeout_s)

    def submit(self, job: Job | None = None, /, *, wait: float = 0.0, **fields: Unpack[JobFields]) -> str:
        """Put a job on the queue and return its id: a Job, or its fields and those of its sampling as arguments.

        Raises QueueFull if there is no room within `wait` seconds. Submitting one Job twice, or again after an error,
        is one job.
        """
        call, patience = self._enqueue(make_job(job, dict(fields), self.partitions)), Patience(wait)
        while True:
            try:
                return self._run(call).job_id
            except QueueFull as refusal:
                time.sleep(patience.pause(refusal))

    def submit_many(self, jobs: Iterable[Job], *, wait: float = 0.0) -> list[str]:
        """Put many jobs on the queue, hundreds per round trip, and return their ids in order.

        Raises QueueFull if there is no room within `wait` seconds, whose `accepted` names those that were taken;
        sending all of them again is safe.
        """
        ids: list[str] = []
        patience = Patience(wait)
        for chunk in chunks(jobs):
            requests = [self._enqueue(job) for job in chunk]
            while True:
                with speaking_to(self.url):
                    answers = calls.run_many(self._redis, requests)
                try:
                    ids = all_accepted(answers, ids)
                    break
                except QueueFull as refusal:
                    time.sleep(patience.pause(refusal))
        return ids

    def stream(
        self, job: Job | str, from_offset: int = 0, *, from_hash: int | None = None, timeout: float | None = None
    ) -> Iterator[Event]:
        """The job's events from its token `from_offset` on, as they come, to its end: no gap, no repeat.

        Where a failover of Redis took back what was told, a Resync says from where on it is told anew. Who comes back
        with tokens of an earlier `stream` has them checked by giving the `hash` of its last tokens event as well.
        Lost connections are made again for a minute. The first step raises JobUnknown or ResultExpired where there is
        nothing to follow; ResultTimeout if the job has not ended within `timeout` seconds.
        """
        following = self._following(job, from_offset, from_hash, timeout)
        with connect_to_block(self.url, timeout_s=self.timeout_s) as own:
            while not following.ended:
                yield from self._carry_out(following.more(), own)

    def result(self, job: Job | str, timeout: float | None = None) -> Result:
        """The whole answer, once there is one, however the job ended (`raise_for_failure` turns a bad end to an error).

        Raises JobUnknown, ResultExpired, and ResultTimeout after `timeout` seconds.
        """
        with connect_to_block(self.url, timeout_s=self.timeout_s) as own:
            return self._carry_out(self._result(job, timeout), own)

    def cancel(self, job: Job | str, reason: str = "cancelled by its producer") -> CancelReply:
        """End a job wherever it is. The tokens it has stay readable. Raises JobUnknown."""
        return _met(job, self._run(self._cancel(job, reason)))

    def status(self, job: Job | str) -> JobStatus:
        """Where a job stands. Raises JobUnknown."""
        return _known(job, self._run(self._status(job)))

    def close(self) -> None:
        """Close all connections. The object can be used again."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        with speaking_to(self.url):
            return calls.run(self._redis, call)

    def _carry_out(self, flow: Flow[T], own: sync_redis.Redis) -> T:
        """Do a flow's steps one by one and tell it what came of each."""
        with speaking_to(self.url):
            try:
                step = next(flow)
                while True:
                    try:
                        answer = self._step(step, own)
                    except RedisError as error:
                        step = flow.throw(error)
                    else:
                        step = flow.send(answer)
            except StopIteration as done:
                return cast("T", done.value)

    def _step(self, step: Step, own: sync_redis.Redis) -> Any:
        match step:
            case Call():
                return calls.run(self._redis, step)
            case Get(key):
                return self._redis.get(key)
            case Read(key, after, block_ms):
                return _entries(own.xread({key: after}, count=READ_COUNT, block=block_ms))
            case Pause(seconds):
                own.connection_pool.disconnect()
                time.sleep(seconds)
                return None


class AsyncProducer(_Client):
    """Producer for asyncio: the same methods, awaited. Belongs to one event loop.

    Any number of tasks share two connections per partition: readers one that blocks, all else one (followers.py).
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue: str = "default", partitions: int = 1, timeout_s: float = TIMEOUT_S
    ) -> None:
        super().__init__(url, queue, partitions, timeout_s)
        self._redis = aconnect(url, timeout_s=timeout_s)
        self._blocking = aconnect_to_block(url, timeout_s=timeout_s)
        self._followers: dict[Keys, Followers] = {}

    async def submit(self, job: Job | None = None, /, *, wait: float = 0.0, **fields: Unpack[JobFields]) -> str:
        """As Producer.submit."""
        made, patience = make_job(job, dict(fields), self.partitions), Patience(wait)
        while True:
            try:
                return (await self._run(made, self._enqueue(made))).job_id
            except QueueFull as refusal:
                await asyncio.sleep(patience.pause(refusal))

    async def submit_many(self, jobs: Iterable[Job], *, wait: float = 0.0) -> list[str]:
        """As Producer.submit_many."""
        ids: list[str] = []
        patience = Patience(wait)
        for chunk in chunks(jobs):
            requests = [self._enqueue(job) for job in chunk]
            while True:
                with speaking_to(self.url):
                    answers = await calls.arun_many(self._redis, requests)
                try:
                    ids = all_accepted(answers, ids)
                    break
                except QueueFull as refusal:
                    await asyncio.sleep(patience.pause(refusal))
        return ids

    async def stream(
        self, job: Job | str, from_offset: int = 0, *, from_hash: int | None = None, timeout: float | None = None
    ) -> AsyncIterator[Event]:
        """As Producer.stream."""
        following = self._following(job, from_offset, from_hash, timeout)
        with self._reader(job) as reader:
            while not following.ended:
                with speaking_to(self.url):
                    events = await reader.carry_out(following.more())
                for event in events:
                    yield event

    async def result(self, job: Job | str, timeout: float | None = None) -> Result:
        """As Producer.result."""
        flow = self._result(job, timeout)
        with self._reader(job) as reader, speaking_to(self.url):
            return await reader.carry_out(flow)

    async def cancel(self, job: Job | str, reason: str = "cancelled by its producer") -> CancelReply:
        """As Producer.cancel."""
        return _met(job, await self._run(job, self._cancel(job, reason)))

    async def status(self, job: Job | str) -> JobStatus:
        """As Producer.status."""
        return _known(job, await self._run(job, self._status(job)))

    async def close(self) -> None:
        """Close all connections. Whoever still waits is told so by RedisUnavailable. The object can be used again."""
        everyone, self._followers = list(self._followers.values()), {}
        for followers in everyone:
            await followers.close()
        await self._blocking.aclose()
        await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, job: Job | str, call: Call[T]) -> T:
        followers = self._of_partition(self._keys(job))
        with speaking_to(self.url):
            return await followers.questions.run(call)

    def _reader(self, job: Job | str) -> Reader:
        keys = self._keys(job)
        return self._of_partition(keys).reader(keys.tokens(_id(job)))

    def _of_partition(self, keys: Keys) -> Followers:
        if keys not in self._followers:
            self._followers[keys] = Followers(Questions(self._redis), self._blocking, keys)
        return self._followers[keys]


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def _known(job: Job | str, found: T | None) -> T:
    if found is None:
        raise JobUnknown(_id(job))
    return found


def _met(job: Job | str, reply: CancelReply) -> CancelReply:
    return _known(job, None if reply.met == "unknown" else reply)


def _entries(reply: Any) -> list[Entry]:
    """The entries of the one stream that was read."""
    return reply[0][1] if reply else []
