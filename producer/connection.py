"""Connections to Redis with every timeout and retry said, and Redis' refusals as one sentence that says what to do.

redis-py's defaults differ from version to version, and 8 sends a command up to ten times more when the answer is late.
Here a command is sent again three times, since each of our scripts recognises a re-send; a blocking read never is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import redis as sync_redis
import redis.asyncio as async_redis
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from producer.errors import RedisUnavailable

Client = TypeVar("Client", sync_redis.Redis, async_redis.Redis)

DEFAULT_URL = "redis://127.0.0.1:6379/0"
TIMEOUT_S = 10.0
"""For one command's answer. A script over 256 jobs takes about a millisecond; the rest is room for a busy server."""
RESENDS = 3
BLOCK_S = 5.0
"""The longest single blocking read: after it, whoever waits looks around (is the job still there?)."""


def connect(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S, resends: int = RESENDS) -> sync_redis.Redis:
    """A pool for commands. Opens nothing yet. Raises RedisUnavailable if `url` is no Redis URL.

    Without `resends` a lost reply is the caller's to see: who pulls has to know.
    """
    return _described(sync_redis.Redis, url, timeout_s, Retry(ExponentialBackoff(cap=1.0, base=0.05), resends))


def connect_to_block(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> sync_redis.Redis:
    """A connection of its own for reads that block up to BLOCK_S: waits longer than they do, and never sends again."""
    return _described(sync_redis.Redis, url, BLOCK_S + timeout_s, Retry(NoBackoff(), 0))


def aconnect(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> async_redis.Redis:
    """`connect`, for asyncio."""
    return _described(async_redis.Redis, url, timeout_s, AsyncRetry(ExponentialBackoff(cap=1.0, base=0.05), RESENDS))


def aconnect_to_block(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> async_redis.Redis:
    """`connect_to_block`, for asyncio."""
    return _described(async_redis.Redis, url, BLOCK_S + timeout_s, AsyncRetry(NoBackoff(), 0))


def _described(kind: type[Client], url: str, timeout_s: float, retry: Retry | AsyncRetry) -> Client:
    """A client of `kind`, with all its settings said."""
    try:
        client = kind.from_url(
            url,
            retry=retry,
            socket_timeout=timeout_s,
            socket_connect_timeout=min(5.0, timeout_s),
            socket_keepalive=True,
            health_check_interval=30,  # a connection that a firewall dropped while idle is noticed before it is used
            decode_responses=False,
            protocol=2,  # 3 answers XREAD in another shape
        )
        pool = client.connection_pool
        pool.connection_class(
            **pool.connection_kwargs
        )  # else a wrong query in the URL is only met by the first command
    except (ValueError, TypeError, OSError) as error:
        said = " ".join(str(error).split())
        raise RedisUnavailable(f"expected a URL like {DEFAULT_URL}, got {redact(url)} ({said}): correct it") from error
    return client


@contextmanager
def speaking_to(url: str) -> Iterator[None]:
    """Turn redis-py's exceptions into RedisUnavailable."""
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        raise unavailable(url, error) from error


def unavailable(url: str, error: Exception) -> RedisUnavailable:
    """What went wrong between us and the Redis at `url`, and what to do. The password is not repeated."""
    where = f"Redis at {redact(url)}"
    said = " ".join(str(error).split()) or type(error).__name__
    match error:
        case exceptions.AuthenticationError():
            return RedisUnavailable(f"{where} refuses the login ({said}): check user and password in its URL")
        case exceptions.NoPermissionError():
            return RedisUnavailable(f"{where} forbids this to its user ({said}): check the ACL")
        case exceptions.TimeoutError():
            return RedisUnavailable(f"{where} does not answer in time ({said}): check its load and the network")
        case exceptions.ConnectionError() | OSError():
            return RedisUnavailable(f"no {where} ({said}): start it, or correct the URL")
        case _ if "NOAUTH" in said or "WRONGPASS" in said:
            return RedisUnavailable(f"{where} asks for a login ({said}): put user and password in its URL")
        case _:
            return RedisUnavailable(f"{where} refuses ({said}): see its log, and try again once that is mended")


def redact(url: str) -> str:
    """`url` without its password."""
    return re.sub(r"(?<=://)([^/@]*):[^/@]*@", r"\1:***@", url)
