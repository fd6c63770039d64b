"""A Lua script as a value, and the two ways to run it: `run` waits, `arun` is awaited. All else here knows no Redis.

Scripts are addressed by their content: EVALSHA, and where the server has not seen it (restarted, flushed, failed over)
once more with the text. Each of our scripts recognises a re-sent call, so sending twice is always safe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Generic, TypeVar

import redis as sync_redis
import redis.asyncio as async_redis
from redis.exceptions import NoScriptError

from producer.errors import SlipstreamError

T = TypeVar("T")
Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Script:
    """One file of scripts/, with the prelude all of them share."""

    name: str
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """scripts/<name>.lua, read once."""
    folder = resources.files("producer") / "scripts"
    text = (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A script with its keys and arguments, and how to read the answer. May be run any number of times."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]
    parse: Callable[[Any], T]

    @property
    def evalsha(self) -> tuple[Any, ...]:
        """The arguments of EVALSHA."""
        return (self.script.sha, len(self.keys), *self.keys, *self.args)

    @property
    def eval(self) -> tuple[Any, ...]:
        """The arguments of EVAL, which also makes the server know the script."""
        return (self.script.text, len(self.keys), *self.keys, *self.args)


def run(redis: sync_redis.Redis, call: Call[T]) -> T:
    """Run one call. Raises what `call.parse` raises, and redis.RedisError."""
    try:
        answer: Any = redis.evalsha(*call.evalsha)
    except NoScriptError:
        answer = redis.eval(*call.eval)
    return call.parse(answer)


async def arun(redis: async_redis.Redis, call: Call[T]) -> T:
    """`run`, awaited."""
    try:
        answer: Any = await redis.evalsha(*call.evalsha)
    except NoScriptError:
        answer = await redis.eval(*call.eval)
    return call.parse(answer)


def run_many(redis: sync_redis.Redis, calls: Sequence[Call[T]]) -> list[T | SlipstreamError]:
    """Run the calls in one round trip, each on its own: an error of ours stands where its answer would.

    Raises redis.RedisError if any call could not be run; running all of them again is safe.
    """
    with redis.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.evalsha(*call.evalsha)
        answers = pipeline.execute(raise_on_error=False)
    for index, answer in enumerate(answers):
        if isinstance(answer, NoScriptError):
            answers[index] = redis.eval(*calls[index].eval)
    return _parse_all(calls, answers)


async def arun_many(redis: async_redis.Redis, calls: Sequence[Call[T]]) -> list[T | SlipstreamError]:
    """`run_many`, awaited."""
    async with redis.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.evalsha(*call.evalsha)
        answers = await pipeline.execute(raise_on_error=False)
    for index, answer in enumerate(answers):
        if isinstance(answer, NoScriptError):
            answers[index] = await redis.eval(*calls[index].eval)
    return _parse_all(calls, answers)


def _parse_all(calls: Sequence[Call[T]], answers: list[Any]) -> list[T | SlipstreamError]:
    parsed: list[T | SlipstreamError] = []
    for call, answer in zip(calls, answers, strict=True):
        if isinstance(answer, Exception):
            raise answer
        try:
            parsed.append(call.parse(answer))
        except SlipstreamError as error:
            parsed.append(error)
    return parsed
