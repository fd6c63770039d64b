"""Connections to Redis with every timeout and retry said, and Redis' refusals as one sentence that says what to do.

redis-py's defaults differ from version to version, and 8 sends a command up to ten times more when the answer is late.
Here a command is sent again three times, since each of our scripts recognises a re-send; a blocking read never is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis as sync_redis
import redis.asyncio as async_redis
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from producer.errors import RedisUnavailable

DEFAULT_URL = "redis://127.0.0.1:6379/0"
TIMEOUT_S = 10.0
"""For one command's answer. A script over 256 jobs takes about a millisecond; the rest is room for a busy server."""
RESENDS = 3
BLOCK_S = 5.0
"""The longest single blocking read: after it, whoever waits looks around (is the job still there?)."""


def connect(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> sync_redis.Redis:
    """A pool for commands. Opens nothing yet. Raises RedisUnavailable if `url` is no Redis URL."""
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), RESENDS)
    with speaking_to(url):
        return sync_redis.Redis.from_url(url, **_settings(timeout_s), retry=retry)


def connect_to_block(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> sync_redis.Redis:
    """A connection of its own for reads that block up to BLOCK_S: waits longer than they do, and never sends again."""
    with speaking_to(url):
        return sync_redis.Redis.from_url(url, **_settings(BLOCK_S + timeout_s), retry=Retry(NoBackoff(), 0))


def aconnect(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> async_redis.Redis:
    """`connect`, for asyncio."""
    retry = AsyncRetry(ExponentialBackoff(cap=1.0, base=0.05), RESENDS)
    with speaking_to(url):
        return async_redis.Redis.from_url(url, **_settings(timeout_s), retry=retry)


def aconnect_to_block(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> async_redis.Redis:
    """`connect_to_block`, for asyncio."""
    with speaking_to(url):
        return async_redis.Redis.from_url(url, **_settings(BLOCK_S + timeout_s), retry=AsyncRetry(NoBackoff(), 0))


def _settings(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(5.0, timeout_s),
        "socket_keepalive": True,
        "health_check_interval": 30,  # a connection that a firewall dropped while idle is noticed before it is used
        "decode_responses": False,
        "protocol": 2,  # 3 answers XREAD in another shape
    }


@contextmanager
def speaking_to(url: str) -> Iterator[None]:
    """Turn redis-py's exceptions into RedisUnavailable."""
    try:
        yield
    except exceptions.RedisError as error:
        raise unavailable(url, error) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and url.startswith(("redis://", "rediss://", "unix://")):
            raise
        raise unavailable(url, error) from error


def unavailable(url: str, error: Exception) -> RedisUnavailable:
    """What went wrong between us and the Redis at `url`, and what to do. The password is not repeated."""
    where = f"Redis at {redact(url)}"
    said = " ".join(str(error).split()) or type(error).__name__
    match error:
        case ValueError():
            return RedisUnavailable(f"expected a URL like {DEFAULT_URL}, got {redact(url)}: correct it")
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
