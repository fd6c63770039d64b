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
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from producer.errors import SlipstreamError, Undecodable

T = TypeVar("T")
Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Script:
    """One file of scripts/, with the prelude all of them share."""

    name: str
    text: str
    sha: str
    reads_only: bool = False
    """Whether its text says that it has no effects. Redis holds it to that where its user may only read."""


@cache
def script(name: str) -> Script:
    """scripts/<name>.lua, read once."""
    folder = resources.files("producer") / "scripts"
    own = (folder / f"{name}.lua").read_text()
    text = (folder / "prelude.lua").read_text() + own
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha, reads_only="\n-- effects none\n" in own)


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
        return call.parse(redis.evalsha(*call.evalsha))
    except (NoScriptError, NoPermissionError) as error:
        refused = error
    return call.parse(_once_more(redis, call, refused))


async def arun(redis: async_redis.Redis, call: Call[T]) -> T:
    """`run`, awaited."""
    try:
        return call.parse(await redis.evalsha(*call.evalsha))
    except (NoScriptError, NoPermissionError) as error:
        refused = error
    return call.parse(await aonce_more(redis, call, refused))


def _once_more(redis: sync_redis.Redis, call: Call[Any], refused: ResponseError) -> Any:
    """The answer to a call that was refused: its script was not known here, or its user may only read."""
    if isinstance(refused, NoScriptError):
        return redis.eval(*call.eval)
    if not call.script.reads_only:
        raise refused
    try:
        return redis.evalsha_ro(*call.evalsha)
    except NoScriptError:
        return redis.eval_ro(*call.eval)
    except ResponseError:  # before 7.0 there is no such command
        raise refused from None


async def aonce_more(redis: async_redis.Redis, call: Call[Any], refused: ResponseError) -> Any:
    """`_once_more`, awaited."""
    if isinstance(refused, NoScriptError):
        return await redis.eval(*call.eval)
    if not call.script.reads_only:
        raise refused
    try:
        return await redis.evalsha_ro(*call.evalsha)
    except NoScriptError:
        return await redis.eval_ro(*call.eval)
    except ResponseError:
        raise refused from None


def run_many(redis: sync_redis.Redis, calls: Sequence[Call[T]]) -> list[T | SlipstreamError]:
    """Run the calls in one round trip, each on its own: an error of ours stands where its answer would, Undecodable
    where a key holds what no script wrote.

    Raises redis.RedisError if any call could not be run; running all of them again is safe.
    """
    with redis.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.evalsha(*call.evalsha)
        answers = pipeline.execute(raise_on_error=False)
    if unknown := [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]:
        with redis.pipeline(transaction=False) as pipeline:
            for index, is_told in zip(unknown, _are_told([calls[index] for index in unknown]), strict=True):
                pipeline.evalsha(*calls[index].evalsha) if is_told else pipeline.eval(*calls[index].eval)
            for index, answer in zip(unknown, pipeline.execute(raise_on_error=False), strict=True):
                answers[index] = answer
    for index, answer in enumerate(answers):
        if isinstance(answer, NoPermissionError):
            answers[index] = _once_more(redis, calls[index], answer)
    return _parse_all(calls, answers)


async def arun_many(redis: async_redis.Redis, calls: Sequence[Call[T]]) -> list[T | SlipstreamError]:
    """`run_many`, awaited."""
    async with redis.pipeline(transaction=False) as pipeline:
        for call in calls:
            pipeline.evalsha(*call.evalsha)
        answers = await pipeline.execute(raise_on_error=False)
    if unknown := [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]:
        async with redis.pipeline(transaction=False) as pipeline:
            for index, is_told in zip(unknown, _are_told([calls[index] for index in unknown]), strict=True):
                pipeline.evalsha(*calls[index].evalsha) if is_told else pipeline.eval(*calls[index].eval)
            for index, answer in zip(unknown, await pipeline.execute(raise_on_error=False), strict=True):
                answers[index] = answer
    for index, answer in enumerate(answers):
        if isinstance(answer, NoPermissionError):
            answers[index] = await aonce_more(redis, calls[index], answer)
    return _parse_all(calls, answers)


def _are_told(calls: Sequence[Call[Any]]) -> list[bool]:
    """For each call whether an earlier one brings its script to the same node of a cluster, by its keys' hash tag."""
    told: set[tuple[str, str]] = set()
    answers = []
    for call in calls:
        place = (call.script.sha, call.keys[0].partition("}")[0])
        answers.append(place in told)
        told.add(place)
    return answers


def _parse_all(calls: Sequence[Call[T]], answers: list[Any]) -> list[T | SlipstreamError]:
    parsed: list[T | SlipstreamError] = []
    for call, answer in zip(calls, answers, strict=True):
        if isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer):
            parsed.append(Undecodable("job", f"a key of {call.keys[0]} and its kind holds something else ({answer})"))
            continue
        if isinstance(answer, Exception):
            raise answer
        try:
            parsed.append(call.parse(answer))
        except SlipstreamError as error:
            parsed.append(error)
    return parsed
