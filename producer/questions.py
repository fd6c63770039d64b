"""Calls and looks of many tasks, put together: one connection, and one round trip for all that wait at the same time.

In: a question, from any task. Out: its own answer, or its own error. Without questions nothing runs. A pipeline of 256
small scripts takes Redis some milliseconds, and this process a fraction of what 256 single commands would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis.asyncio as async_redis
from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from producer.calls import Call
from producer.calls.script import aonce_more
from producer.errors import RedisUnavailable, SlipstreamError
from producer.follow import Get

T = TypeVar("T")

TOGETHER = 256
"""Questions in one round trip."""


@dataclass(frozen=True, slots=True)
class Peek:
    """XREAD of one stream's first entry: whether there is a stream that may be read."""

    stream: str


Question = Call[Any] | Get | Peek
Answer = asyncio.Future[Any]
"""An exception is the result of it, too: one that many wait for is then raised by each on its own."""


class Questions:
    """What the tasks of one event loop ask one partition."""

    def __init__(self, redis: async_redis.Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[Question, Answer]] = []
        self._asking: asyncio.Task[None] | None = None
        self._closed = False

    def check(self) -> None:
        """Assert that nothing is left to answer. For tests."""
        assert not self._waiting, f"{len(self._waiting)} questions that nobody puts"
        assert self._asking is None or self._asking.done(), "still asking"

    async def close(self) -> None:
        """Answer whatever waits with RedisUnavailable, and stop."""
        self._closed = True
        for _, answer in self._waiting:
            tell(answer, closed())
        self._waiting.clear()
        if self._asking is not None:
            await stop([self._asking])

    async def ask(self, question: Question) -> Any:
        """The answer. Raises redis.RedisError, and what a call's `parse` raises."""
        return raised(await self._put_down(question))

    async def run(self, call: Call[T]) -> T:
        """`ask`, of a call."""
        return cast("T", await self.ask(call))

    async def ask_all(self, questions: Sequence[Question]) -> list[Any]:
        """The answers, with errors in their places."""
        return await asyncio.gather(*(self._put_down(question) for question in questions))

    def _put_down(self, question: Question) -> Answer:
        if self._closed:
            raise closed()
        answer: Answer = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        return answer

    async def _ask(self) -> None:
        while self._waiting:
            some = self._waiting[:TOGETHER]
            del self._waiting[:TOGETHER]
            # Who has left in the meantime asks nothing any more.
            await self._put([(question, answer) for question, answer in some if not answer.done()])

    async def _put(self, questions: list[tuple[Question, Answer]]) -> None:
        """One round trip: each is told its own answer or error, and all are told if there is none."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for question, _ in questions:
                    match question:
                        case Call():
                            pipeline.evalsha(*question.evalsha)
                        case Get(key):
                            pipeline.get(key)
                        case Peek(stream):
                            pipeline.xread({stream: "0-0"}, count=1)
                said = await pipeline.execute(raise_on_error=False)
            for (question, answer), reply in zip(questions, said, strict=True):
                tell(answer, await self._understood(question, reply))
        except (RedisError, OSError) as error:
            for _, answer in questions:
                tell(answer, error)
        finally:
            for _, answer in questions:
                tell(answer, closed())  # who has no answer yet gets none any more

    async def _understood(self, question: Question, reply: Any) -> Any:
        """What a reply amounts to, or its error."""
        if not isinstance(question, Call):
            return reply
        try:
            if isinstance(reply, (NoScriptError, NoPermissionError)):
                reply = await aonce_more(self._redis, question, reply)
            return reply if isinstance(reply, Exception) else question.parse(reply)
        except (ResponseError, SlipstreamError) as error:
            return error


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they end: before Python 3.12 `wait_for`, by which redis-py sends, may swallow a cancel."""
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=0.05)


def tell(answer: Answer, said: Any) -> None:
    """Answer, unless it is answered or nobody waits any more."""
    if not answer.done():
        answer.set_result(said)


def raised(said: Any) -> Any:
    """`said`, raised if it is an exception: without the traces of others who raised the same one."""
    if isinstance(said, Exception):
        raise said.with_traceback(None)
    return said


def closed() -> RedisUnavailable:
    """Why a client that was closed answers nothing."""
    return RedisUnavailable("this client was closed while someone was waiting for it: close it last")
