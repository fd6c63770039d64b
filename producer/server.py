"""A client of one server, or of the primary that Sentinels name, which sends a command again where its answer was lost.

A server that has become a replica counts as a lost connection: the next one leads to the new primary, by way of the
Sentinels or of whatever the host's name stands for by then. redis-py has retries of its own; they count connecting and
sending apart and so multiply, which is why its connections here have none.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis as sync_redis
import redis.asyncio as async_redis
from redis import exceptions
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.connection import ConnectionPool as AsyncPool
from redis.client import Pipeline
from redis.connection import ConnectionPool

T = TypeVar("T")

REPLICA = "You can't write against a read only replica"
"""How a replica refuses. Out of a script, Redis 6.2 says so by this text alone."""


class Server(sync_redis.Redis):
    """One server, or whichever the Sentinels say is the primary."""

    def __init__(self, pool: ConnectionPool, resends: int) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._resends = resends

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """The command's answer, asked for again where it was lost."""
        return self.insist(lambda: sync_redis.Redis.execute_command(self, *args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As redis-py's; all of it is sent again where an answer was lost."""
        return _Pipeline(self, transaction)

    def insist(self, send: Callable[[], T]) -> T:
        """What `send` returns, called again as often as `Losses` allows."""
        losses = Losses(self._resends)
        while True:
            try:
                return send()
            except exceptions.RedisError as error:
                pause_s = losses.pause_after(error)
            self.connection_pool.disconnect(inuse_connections=False)
            time.sleep(pause_s)


class _Pipeline(Pipeline):
    def __init__(self, server: Server, transaction: bool) -> None:
        super().__init__(server.connection_pool, server.response_callbacks, transaction, None)
        self._server = server

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)

        def send() -> list[Any]:
            self.command_stack = list(commands)
            return _unless_replicas(super(_Pipeline, self).execute(raise_on_error=False))

        return raised(self._server.insist(send), raise_on_error)


class AsyncServer(async_redis.Redis):
    """Server, for asyncio."""

    def __init__(self, pool: AsyncPool, resends: int) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._resends = resends

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As Server.execute_command."""
        return await self.insist(lambda: async_redis.Redis.execute_command(self, *args, **options))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> AsyncPipeline:
        """As Server.pipeline."""
        return _AsyncPipeline(self, transaction)

    async def insist(self, send: Callable[[], Awaitable[T]]) -> T:
        """As Server.insist."""
        losses = Losses(self._resends)
        while True:
            try:
                return await send()
            except exceptions.RedisError as error:
                pause_s = losses.pause_after(error)
            await self.connection_pool.disconnect(inuse_connections=False)
            await asyncio.sleep(pause_s)


class _AsyncPipeline(AsyncPipeline):
    def __init__(self, server: AsyncServer, transaction: bool) -> None:
        super().__init__(server.connection_pool, server.response_callbacks, transaction, None)
        self._server = server

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)

        async def send() -> list[Any]:
            self.command_stack = list(commands)
            return _unless_replicas(await super(_AsyncPipeline, self).execute(raise_on_error=False))

        return raised(await self._server.insist(send), raise_on_error)


class Losses:
    """Answers of one command that were lost so far, and whether it may be sent again: `resends` times, and once more
    where a replica has refused it, which has had no effect.
    """

    def __init__(self, resends: int) -> None:
        self._left, self._count = resends, 0
        self._met_replica = False

    def pause_after(self, error: exceptions.RedisError) -> float:
        """Seconds until the next try, over a new connection. Raises `error` where there is none."""
        if _is_replicas(error):
            if self._met_replica:
                raise exceptions.ConnectionError(f"it is a replica: {REPLICA}") from error
            self._met_replica = True
            return 0.0
        lost = isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError)
        if not lost or isinstance(error, exceptions.AuthenticationError) or not self._left:
            raise error
        self._left, self._count = self._left - 1, self._count + 1
        return min(1.0, 0.05 * 2.0**self._count) * random.uniform(0.5, 1)


def _is_replicas(answer: Any) -> bool:
    """Whether this is a replica's refusal to write."""
    return isinstance(answer, exceptions.ResponseError) and REPLICA in str(answer)


def _unless_replicas(answers: list[Any]) -> list[Any]:
    """`answers`, unless a replica's refusal is among them, which is raised."""
    for answer in answers:
        if _is_replicas(answer):
            raise answer
    return answers


def raised(answers: list[Any], raise_on_error: bool) -> list[Any]:
    """`answers`, unless an error among them is to be raised."""
    for answer in answers if raise_on_error else ():
        if isinstance(answer, Exception):
            raise answer
    return answers
