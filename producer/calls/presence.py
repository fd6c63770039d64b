"""Workers and the queue itself: who is alive, and how an idle worker waits for work."""

from __future__ import annotations

from typing import Any

import redis as sync_redis
import redis.asyncio as async_redis

from producer.calls.script import Call, arun, run, script
from producer.keys import GROUP, HANDOFF, Keys


def heartbeat(keys: Keys, consumer: str, info: bytes, ttl_s: float) -> Call[None]:
    """Say that `consumer` lives for another `ttl_s`; `info` is whatever it wants known (msgpack by custom)."""
    return Call(script("heartbeat"), (keys.workers,), (consumer, info, round(ttl_s * 1000)), lambda _: None)


def workers(keys: Keys) -> Call[dict[str, bytes]]:
    """Who is alive, with the info of the last heartbeat."""

    def parse(answer: Any) -> dict[str, bytes]:
        return {consumer.decode(): info for consumer, info in zip(answer[::2], answer[1::2], strict=True)}

    return Call(script("workers"), (keys.workers,), (), parse)


def wait_for_work(redis: sync_redis.Redis, keys: Keys, timeout_s: float, fingerprint: str = "") -> bool:
    """Block until there may be something to pull (True), or for `timeout_s` (False). Takes nothing.

    Give it a connection of its own, whose socket timeout exceeds `timeout_s` and which does not retry
    (producer.connection). What a reclaim would find does not ring: go and look each reclaim interval.
    """
    streams = run(redis, _listen(keys, fingerprint))
    return streams is None or bool(redis.xread(dict(streams), count=1, block=max(1, round(timeout_s * 1000))))


async def await_work(redis: async_redis.Redis, keys: Keys, timeout_s: float, fingerprint: str = "") -> bool:
    """`wait_for_work`, awaited."""
    streams = await arun(redis, _listen(keys, fingerprint))
    return streams is None or bool(await redis.xread(dict(streams), count=1, block=max(1, round(timeout_s * 1000))))


def _listen(keys: Keys, fingerprint: str) -> Call[dict[Any, Any] | None]:
    """The streams to listen to, each with the id after which there is nothing yet; None: there is work now."""

    def parse(answer: Any) -> dict[Any, Any] | None:
        return dict(zip((*keys.lanes, keys.bell), answer, strict=True)) if answer else None

    own = (HANDOFF, f"{HANDOFF}:{fingerprint}") if fingerprint else (HANDOFF,)
    return Call(script("listen"), (*keys.lanes, keys.bell), (GROUP, *own), parse)
