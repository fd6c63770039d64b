"""Connections to Redis with every timeout and retry said, and Redis' refusals as one sentence that says what to do.

redis-py's defaults differ from version to version, and 8 sends a command up to ten times more when the answer is late.
Here a command is sent again three times, since each of our scripts recognises a re-send; a blocking read never is.

A client of Sentinels or of a cluster is used as one of a single server is: address.py has their URLs, server.py and
cluster.py the clients.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis as sync_redis
import redis.asyncio as async_redis
from redis import exceptions
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.connection import ConnectionPool as AsyncPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from producer.address import Address, Host, redact
from producer.cluster import AsyncCluster, Cluster
from producer.errors import RedisUnavailable
from producer.server import REPLICA, AsyncServer, Server

DEFAULT_URL = "redis://127.0.0.1:6379/0"
TIMEOUT_S = 10.0
"""For one command's answer. A script over 256 jobs takes about a millisecond; the rest is room for a busy server."""
RESENDS = 3
BLOCK_S = 5.0
"""The longest single blocking read: after it, whoever waits looks around (is the job still there?)."""
_CONNECT_S = 5.0
_SENTINEL_S = 2.0  # for a Sentinel's answer; then the next one is asked


def connect(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S, resends: int = RESENDS) -> sync_redis.Redis:
    """A pool for commands. Opens nothing yet. Raises RedisUnavailable if `url` is no Redis URL.

    Without `resends` a lost reply is the caller's to see: who pulls has to know.
    """
    address = _address(url)
    settings = {**_settings(address, timeout_s), "retry": Retry(NoBackoff(), 0)}  # else each connect is retried as well
    match address.form:
        case "cluster":
            return Cluster(address.hosts, lambda host: _server(address, host, settings, 0), resends)
        case "sentinel":
            asked = {**_sentinel_settings(address), "retry": Retry(NoBackoff(), 0)}
            sentinels = Sentinel(list(address.hosts), sentinel_kwargs=asked)
            return Server(SentinelConnectionPool(address.service, sentinels, ssl=address.tls, **settings), resends)
        case _:
            return _server(address, address.hosts[0] if address.hosts else None, settings, resends)


def aconnect(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S, resends: int = RESENDS) -> async_redis.Redis:
    """`connect`, for asyncio."""
    address = _address(url)
    settings = {**_settings(address, timeout_s), "retry": AsyncRetry(NoBackoff(), 0)}
    match address.form:
        case "cluster":
            return AsyncCluster(address.hosts, lambda host: _aserver(address, host, settings, 0), resends)
        case "sentinel":
            asked = {**_sentinel_settings(address), "retry": AsyncRetry(NoBackoff(), 0)}
            sentinels = async_sentinel.Sentinel(list(address.hosts), sentinel_kwargs=asked)
            pool = async_sentinel.SentinelConnectionPool(address.service, sentinels, ssl=address.tls, **settings)
            return AsyncServer(pool, resends)
        case _:
            return _aserver(address, address.hosts[0] if address.hosts else None, settings, resends)


def connect_to_block(
    url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S, block_s: float = BLOCK_S
) -> sync_redis.Redis:
    """A connection of its own for reads that block up to `block_s`: waits longer than they do, never sends again."""
    return connect(url, timeout_s=block_s + timeout_s, resends=0)


def aconnect_to_block(url: str = DEFAULT_URL, *, timeout_s: float = TIMEOUT_S) -> async_redis.Redis:
    """`connect_to_block`, for asyncio."""
    return aconnect(url, timeout_s=BLOCK_S + timeout_s, resends=0)


def _address(url: str) -> Address:
    try:
        return Address.parse(url)
    except ValueError as error:
        raise RedisUnavailable(f"expected a URL like {DEFAULT_URL}, got {redact(url)} ({error}): correct it") from error


def _settings(address: Address, timeout_s: float) -> dict[str, Any]:
    """Arguments of each connection to a server that holds data, but for `retry`."""
    settings: dict[str, Any] = {
        **address.login,
        **address.encryption,
        "db": address.db,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(_CONNECT_S, timeout_s),
        "health_check_interval": 30,  # a connection that a firewall dropped while idle is noticed before it is used
        "decode_responses": False,
        "protocol": 2,  # 3 answers XREAD in another shape
    }
    return settings if address.form == "socket" else {**settings, **_keepalive()}


def _sentinel_settings(address: Address) -> dict[str, Any]:
    """Arguments of each connection to a Sentinel, but for `retry`."""
    return {
        **address.sentinel_login,
        **address.encryption,
        "ssl": address.tls,
        "socket_timeout": _SENTINEL_S,
        "socket_connect_timeout": _SENTINEL_S,
        "protocol": 2,
        **_keepalive(),
    }


def _keepalive() -> dict[str, Any]:
    """The kernel asks an idle peer after 30 s whether it is there, and gives up 15 s later."""
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    options = {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": options}


def _server(address: Address, host: Host | None, settings: dict[str, Any], resends: int) -> Server:
    kind: type[sync_redis.Connection | sync_redis.UnixDomainSocketConnection]
    kind = sync_redis.SSLConnection if address.tls else sync_redis.Connection
    if host is None:
        kind = sync_redis.UnixDomainSocketConnection
    return Server(ConnectionPool(connection_class=kind, **_place(address, host), **settings), resends)


def _aserver(address: Address, host: Host | None, settings: dict[str, Any], resends: int) -> AsyncServer:
    kind: type[async_redis.Connection | async_redis.UnixDomainSocketConnection]
    kind = async_redis.SSLConnection if address.tls else async_redis.Connection
    if host is None:
        kind = async_redis.UnixDomainSocketConnection
    return AsyncServer(AsyncPool(connection_class=kind, **_place(address, host), **settings), resends)


def _place(address: Address, host: Host | None) -> dict[str, Any]:
    return {"path": address.path} if host is None else {"host": host[0], "port": host[1]}


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
    for sign, advice in _SIGNS.items():
        if sign in said:
            return RedisUnavailable(f"{where} {advice.format(said)}")
    match error:
        case MasterNotFoundError() | async_sentinel.MasterNotFoundError():
            return RedisUnavailable(f"{where}: {_sentinels_say(said)}")
        case exceptions.AuthenticationError():
            return RedisUnavailable(f"{where} refuses the login ({said}): check user and password in its URL")
        case exceptions.NoPermissionError():
            return RedisUnavailable(f"{where} forbids this to its user ({said}): check the ACL")
        case exceptions.MovedError():
            return RedisUnavailable(f"{where} is a node of a cluster: begin its URL with redis+cluster:// for redis://")
        case exceptions.TimeoutError():
            tls = ", and that this port is one for TLS" if url.startswith("rediss") else ""
            return RedisUnavailable(f"{where} does not answer in time ({said}): check its load and the network{tls}")
        case exceptions.ConnectionError() | OSError():
            lacking = url.startswith("rediss") and "ssl_certfile=" not in url
            tls = f", or, if it asks for our certificate, {_OWN_CERTIFICATE}" if lacking else ""
            return RedisUnavailable(f"no {where} ({said}): start it, or correct the URL{tls}")
        case _:
            return RedisUnavailable(f"{where} refuses ({said}): see its log, and try again once that is mended")


def _sentinels_say(said: str) -> str:
    """Why they name no primary. redis-py adds its own objects' insides, which help nobody."""
    found, _, errors = said.partition(" : ")
    if "AuthenticationError" in errors:
        return "a Sentinel refuses the login: check sentinel_username and sentinel_password in the URL"
    if errors:
        return f"{found}, and not all Sentinels answer: start them, or correct the URL"
    return f"{found} that is up: start it, or correct the service's name in the URL"


_OWN_CERTIFICATE = "name it as ?ssl_certfile=...&ssl_keyfile=..."
_SIGNS = {
    "Hostname mismatch": "shows a certificate for another host ({}): name the host as its certificate does",
    "IP address mismatch": "shows a certificate for another host ({}): name the host as its certificate does",
    "CERTIFICATE_VERIFY_FAILED": "shows a certificate that we don't trust ({}): name its CA's file as ?ssl_ca_certs=",
    "WRONG_VERSION_NUMBER": "does not speak TLS there ({}): begin the URL with redis instead of rediss",
    "certificate required": f"asks for our certificate ({{}}): {_OWN_CERTIFICATE}",
    "cluster support disabled": "is no cluster ({}): begin its URL with redis://",
    REPLICA: "is a replica, which takes no writes ({}): name the primary, or the Sentinels that know it",
    "can't run this command": "forbids this to its user ({}): check the ACL",
    "can't access at least one of the keys": "forbids this to its user ({}): check the ACL",
    "ACL failure in script": "forbids this to its user ({}): check the ACL",
    "NOAUTH": "asks for a login ({}): put user and password in its URL",
    "WRONGPASS": "refuses the login ({}): check user and password in its URL",
}
"""What a message holds -> what to say. Errors out of scripts and of TLS come in types that say less than their text."""
