"""A Redis Cluster behind the face of one server: each command goes to the node that serves the slot of its keys.

`Cluster` and `AsyncCluster` are redis.Redis, so whoever runs a script or reads a stream need not know. Where a command
goes, and what becomes of a redirection, a lost connection or a slot that nobody serves, is described once, in `route`,
which knows no sockets. Commands of one slot only, as all of ours are; no transactions.

redis-py has a RedisCluster. It connects when it is made, raises what is no RedisError, asks a server which arguments of
an XREAD or of a pipelined EVALSHA are keys, each time, and re-sends blocking reads.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis as sync_redis
import redis.asyncio as async_redis
from redis import exceptions
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.client import Pipeline
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from producer.address import Host
from producer.server import raised

MOST_HOPS = 8
"""Redirections that one command follows: two or three while slots move, and more only if the nodes disagree."""
MOST_TRIES_AGAIN = 4
"""Waits for a slot that is just moving, for each time a command may be sent: 0.6 s, or 9 s with three re-sends."""
SCRIPTS = ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO")
KEYLESS = ("PING", "ECHO", "TIME", "INFO", "CLUSTER")
NOT_ANSWERED = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterDownError)
REDIRECTED = (exceptions.AskError, exceptions.TryAgainError)  # a MOVED is an AskError


@dataclass(frozen=True, slots=True)
class Send:
    """Send the command to this node; after ASKING, where the slot is on its way there."""

    host: Host
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask for the slots anew."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Let some time pass."""

    seconds: float


Step = Send | Refresh | Wait
Route = Generator[Step, Any, Any]
Command = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments and options of execute_command."""


class Slots:
    """Which node serves which slot, as far as we have heard. `stale`: something showed that this has changed."""

    def __init__(self, seeds: Sequence[Host]) -> None:
        self.stale = True
        self._seeds = list(seeds)
        self._hosts: list[Host | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._silent: Host | None = None

    @property
    def nodes(self) -> list[Host]:
        """All primaries there are, and those we began with; the one that last gave no answer at the end."""
        known = list(dict.fromkeys([*filter(None, self._hosts), *self._seeds]))
        return sorted(known, key=lambda host: host == self._silent)

    def host_of(self, slot: int | None) -> Host:
        """Who serves a slot; anyone for None. Raises ClusterDownError if nobody does."""
        host = self.nodes[0] if slot is None else self._hosts[slot]
        if host is None:
            self.stale = True
            raise exceptions.ClusterDownError(f"no node serves slot {slot}")
        return host

    def learn(self, reply: Iterable[Any], told_by: Host) -> None:
        """Take in an answer to CLUSTER SLOTS. A node that does not know its own name goes by the one we asked."""
        hosts: list[Host | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, *_ in reply:
            name = primary[0].decode() if primary[0] else ""
            host = (name if name not in ("", "?") else told_by[0], int(primary[1]))
            hosts[first : last + 1] = [host] * (last + 1 - first)
        self._hosts, self.stale = hosts, False

    def moved(self, slot: int, host: Host) -> None:
        """A slot is here now; others will have moved with it."""
        self._hosts[slot], self.stale = host, True

    def lost(self, host: Host | None) -> None:
        """A node gave no answer: it may have been replaced."""
        self._silent, self.stale = host, True


def key_of(args: Sequence[Any]) -> bytes | None:
    """The first key of a command, whose slot is that of all; None where any node will do."""
    name, *_ = str(args[0]).upper().split()
    if name in KEYLESS or (name in SCRIPTS and int(args[2]) == 0):
        return None
    if name in SCRIPTS:
        at = 3
    elif name in ("XREAD", "XREADGROUP"):
        words = [word.upper() if isinstance(word, str | bytes) else word for word in args]
        at = 1 + (words.index(b"STREAMS") if b"STREAMS" in words else words.index("STREAMS"))
    else:
        at = 1
    if not 0 < at < len(args):
        raise exceptions.DataError(f"{name}: expected a key, by which the node of a cluster is found, got none")
    key = args[at]
    return key if isinstance(key, bytes) else str(key).encode()


def route(slots: Slots, key: bytes | None, resends: int) -> Route:
    """A command's way to its answer. What was not executed for sure goes on to another node as often as it takes; what
    may have been, since its answer was lost, `resends` times.
    """
    slot = None if key is None else key_slot(key)
    hops = tries = losses = 0
    redirect: Send | None = None
    send: Send | None = None
    while True:
        try:
            if slots.stale and redirect is None:
                yield Refresh()
            send, redirect = redirect or Send(slots.host_of(slot)), None
            return (yield send)
        except exceptions.AuthenticationError:
            raise
        except exceptions.AskError as error:
            hops += 1
            if hops > MOST_HOPS or send is None:
                raise
            host = (error.host or send.host[0], error.port)
            has_moved = isinstance(error, exceptions.MovedError)
            if has_moved:
                slots.moved(error.slot_id, host)
            redirect = Send(host, asking=not has_moved)
        except exceptions.TryAgainError:
            tries += 1
            if tries > MOST_TRIES_AGAIN * (1 + resends):
                raise
            yield Wait(min(1.0, 0.025 * 2**tries) * random.uniform(0.5, 1))
        except NOT_ANSWERED:
            slots.lost(send.host if send else None)
            losses += 1
            if losses > resends:
                raise
            yield Wait(min(1.0, 0.05 * 2.0**losses) * random.uniform(0.5, 1))


def by_node(slots: Slots, commands: Sequence[Command]) -> dict[Host, list[int]]:
    """Which commands (their numbers, in order) go to which node together."""
    together: dict[Host, list[int]] = {}
    for number, (args, _) in enumerate(commands):
        key = key_of(args)
        together.setdefault(slots.host_of(None if key is None else key_slot(key)), []).append(number)
    return together


def is_unsettled(answer: Any, resends: int) -> bool:
    """Whether a command of a pipeline has to be sent again, by itself."""
    return isinstance(answer, REDIRECTED) or (resends > 0 and isinstance(answer, NOT_ANSWERED))


class Cluster(sync_redis.Redis):
    """A cluster, for threads. Opens nothing before it is used."""

    def __init__(self, seeds: Sequence[Host], node: Callable[[Host], sync_redis.Redis], resends: int) -> None:
        """seeds: nodes to ask first; node: a client of one node, which itself sends nothing again."""
        self._slots, self._new, self._resends = Slots(seeds), node, resends
        self._nodes: dict[Host, sync_redis.Redis] = {host: node(host) for host in seeds}
        super().__init__(connection_pool=self._nodes[seeds[0]].connection_pool)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """The command's answer, wherever its slot is."""

        def send(step: Send) -> Any:
            if not step.asking:
                return self._node(step.host).execute_command(*args, **options)
            with self._node(step.host).pipeline(transaction=False) as pipeline:
                pipeline.execute_command("ASKING").execute_command(*args, **options)
                return pipeline.execute()[1]

        return self._follow(route(self._slots, key_of(args), self._resends), send)

    def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """Each command's answer, or the error in its place: one round trip to each node, more for what has moved."""
        if self._slots.stale:
            self._follow(route(self._slots, None, self._resends), lambda _: None)
        answers: list[Any] = [None] * len(commands)
        for host, numbers in by_node(self._slots, commands).items():
            with self._node(host).pipeline(transaction=False) as pipeline:
                for number in numbers:
                    args, options = commands[number]
                    pipeline.execute_command(*args, **options)
                try:
                    found = pipeline.execute(raise_on_error=False)
                except exceptions.RedisError as error:
                    self._slots.lost(host)
                    found = [error] * len(numbers)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer
        for number, (args, options) in enumerate(commands):
            if is_unsettled(answers[number], self._resends):
                try:
                    answers[number] = self.execute_command(*args, **options)
                except exceptions.RedisError as error:
                    answers[number] = error
        return answers

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """A pipeline over all nodes. Without a transaction: `transaction` has to be False."""
        return _Pipeline(self, transaction)

    def close(self) -> None:
        """Close the connections to all nodes."""
        for node in list(self._nodes.values()):
            node.close()

    def _node(self, host: Host) -> sync_redis.Redis:
        if host not in self._nodes:
            self._nodes[host] = self._new(host)
        return self._nodes[host]

    def _follow(self, way: Route, send: Callable[[Send], Any]) -> Any:
        """Take the steps of a route and tell it what came of each."""
        try:
            step = next(way)
            while True:
                try:
                    answer: Any = None
                    match step:
                        case Send():
                            answer = send(step)
                        case Refresh():
                            self._refresh()
                        case Wait(seconds):
                            time.sleep(seconds)
                except exceptions.RedisError as error:
                    step = way.throw(error)
                else:
                    step = way.send(answer)
        except StopIteration as done:
            return done.value

    def _refresh(self) -> None:
        silent: exceptions.RedisError | None = None
        for host in self._slots.nodes:
            try:
                self._slots.learn(self._node(host).execute_command("CLUSTER SLOTS"), host)
            except exceptions.AuthenticationError:
                raise
            except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                silent = error
            else:
                return
        raise silent or exceptions.ConnectionError("the cluster has no node")


class _Pipeline(Pipeline):
    """Commands for any slots; `execute` sends each to its node."""

    def __init__(self, cluster: Cluster, transaction: bool) -> None:
        if transaction:
            raise exceptions.DataError("a cluster's pipeline is no transaction: expected transaction=False")
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction, None)
        self._cluster = cluster

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers in order."""
        commands, self.command_stack = list(self.command_stack), []
        return raised(self._cluster.execute_all(commands), raise_on_error)


class AsyncCluster(async_redis.Redis):
    """A cluster, for asyncio."""

    def __init__(self, seeds: Sequence[Host], node: Callable[[Host], async_redis.Redis], resends: int) -> None:
        """As Cluster's."""
        self._slots, self._new, self._resends = Slots(seeds), node, resends
        self._nodes: dict[Host, async_redis.Redis] = {host: node(host) for host in seeds}
        super().__init__(connection_pool=self._nodes[seeds[0]].connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As Cluster.execute_command."""

        async def send(step: Send) -> Any:
            if not step.asking:
                return await self._node(step.host).execute_command(*args, **options)
            async with self._node(step.host).pipeline(transaction=False) as pipeline:
                pipeline.execute_command("ASKING")
                pipeline.execute_command(*args, **options)
                return (await pipeline.execute())[1]

        return await self._follow(route(self._slots, key_of(args), self._resends), send)

    async def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """As Cluster.execute_all, from all nodes at once."""
        if self._slots.stale:
            await self._follow(route(self._slots, None, self._resends), _nothing)
        answers: list[Any] = [None] * len(commands)

        async def ask(host: Host, numbers: list[int]) -> None:
            async with self._node(host).pipeline(transaction=False) as pipeline:
                for number in numbers:
                    args, options = commands[number]
                    pipeline.execute_command(*args, **options)
                try:
                    found = await pipeline.execute(raise_on_error=False)
                except exceptions.RedisError as error:
                    self._slots.lost(host)
                    found = [error] * len(numbers)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer

        await asyncio.gather(*(ask(*group) for group in by_node(self._slots, commands).items()))
        for number, (args, options) in enumerate(commands):
            if is_unsettled(answers[number], self._resends):
                try:
                    answers[number] = await self.execute_command(*args, **options)
                except exceptions.RedisError as error:
                    answers[number] = error
        return answers

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> AsyncPipeline:
        """As Cluster.pipeline."""
        return _AsyncPipeline(self, transaction)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        for node in list(self._nodes.values()):
            await node.aclose()

    def _node(self, host: Host) -> async_redis.Redis:
        if host not in self._nodes:
            self._nodes[host] = self._new(host)
        return self._nodes[host]

    async def _follow(self, way: Route, send: Callable[[Send], Awaitable[Any]]) -> Any:
        try:
            step = next(way)
            while True:
                try:
                    answer: Any = None
                    match step:
                        case Send():
                            answer = await send(step)
                        case Refresh():
                            await self._refresh()
                        case Wait(seconds):
                            await asyncio.sleep(seconds)
                except exceptions.RedisError as error:
                    step = way.throw(error)
                else:
                    step = way.send(answer)
        except StopIteration as done:
            return done.value

    async def _refresh(self) -> None:
        silent: exceptions.RedisError | None = None
        for host in self._slots.nodes:
            try:
                self._slots.learn(await self._node(host).execute_command("CLUSTER SLOTS"), host)
            except exceptions.AuthenticationError:
                raise
            except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                silent = error
            else:
                return
        raise silent or exceptions.ConnectionError("the cluster has no node")


class _AsyncPipeline(AsyncPipeline):
    """_Pipeline, for asyncio."""

    def __init__(self, cluster: AsyncCluster, transaction: bool) -> None:
        if transaction:
            raise exceptions.DataError("a cluster's pipeline is no transaction: expected transaction=False")
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction, None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers in order."""
        commands, self.command_stack = list(self.command_stack), []
        return raised(await self._cluster.execute_all(commands), raise_on_error)


async def _nothing(_: Send) -> None:
    """What is sent where only the slots are wanted."""
