"""All readers of one partition in one event loop, over one connection that blocks.

In: the steps of any number of flows (follow.py). Out: their answers. One XREAD names the stream of every reader that
has room, and each gets what is new. A reader with INBOX entries before it is lagging, and its stream is not named: it
slows nobody and nothing piles up, Redis keeps the events. What flows ask besides goes through questions.py.

A reader that joins while the XREAD blocks has to be let in. The client wakes itself: an entry on a stream of its own
that every XREAD names too. Of the ways there are this costs least: short blocks would send all names again and again
where nothing happens; CLIENT UNBLOCK is a command for administrators, can come before the XREAD does, and on a cluster
would have to find the node; another connection per reader is what this is to save. A wake is one small script, a few
milliseconds after the first who joined, so that many who join together are let in together, and none where the XREAD
returns by itself meanwhile. Where the wake is refused (an ACL, a full memory), blocks are short instead.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import redis.asyncio as async_redis
from redis.exceptions import RedisError, ResponseError

from producer.calls import Call
from producer.calls.wake import wake
from producer.connection import BLOCK_S
from producer.cursor import START, Entry, order
from producer.follow import READ_COUNT, Flow, Get, Pause, Read, Step
from producer.keys import Keys
from producer.questions import Answer, Peek, Questions, closed, raised, stop, tell

T = TypeVar("T")

INBOX = 64
"""So many entries a reader may have before it: two seconds of a fast job."""
MOST_IN_REPLY = 20_000
"""Entries one reply may bring, over all streams."""
WAKE_AFTER_S = 0.005
"""How long who joins waits for the blocking read to return by itself, and for others who join."""
SHORT_BLOCK_S = 0.1
"""The longest block where the client can't wake itself."""
FEW = 10
"""Readers up to which there is no rest between two reads."""
PAUSE_S_PER_READER = 10e-6
"""Rest between two reads: naming all streams costs both sides about as much, so a busy partition is read in gulps."""


class Followers:
    """The readers of one partition. Opens nothing before the first one reads; without readers nothing runs."""

    def __init__(self, questions: Questions, blocking: async_redis.Redis, keys: Keys) -> None:
        self.questions, self._blocking = questions, blocking
        self._wake = keys.wake(secrets.token_hex(8))
        self._woken = START  # the last entry of our wake stream that we have read
        self._wakes = True  # whether we may read it
        self._block_s = BLOCK_S
        self._readers: dict[str, list[Reader]] = {}  # by the stream they read
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._change = asyncio.Event()
        self._blocked = False  # in a read that knows nothing of what changed since
        self._ring: asyncio.TimerHandle | None = None  # wakes that read
        self._wake_is_due = False
        self._closed = False

    def reader(self, stream: str) -> Reader:
        """One more reader of a job's events: `with followers.reader(keys.tokens(job_id)) as reader`."""
        return Reader(self, stream)

    def check(self) -> None:
        """Assert that nothing is left where nobody reads. For tests."""
        assert not self._readers, f"readers of {sorted(self._readers)} have not left"
        assert not self._tasks, f"still running: {sorted(self._tasks)}"
        self.questions.check()

    async def close(self) -> None:
        """Send all readers away with RedisUnavailable, and stop."""
        self._closed = True
        self._fail(closed())
        await stop(list(self._tasks.values()))
        await self.questions.close()

    # What readers do.

    def join(self, reader: Reader) -> None:
        """From now on this reader's stream is read, whenever it has room."""
        if self._closed:
            raise closed()
        readers = self._readers.setdefault(reader.stream, [])
        if reader not in readers:
            readers.append(reader)
        self.changed()
        self._run("read", self._read)

    def leave(self, reader: Reader) -> None:
        """The reader goes. Its stream may still be named by the read that is under way; the last one ends that."""
        readers = self._readers.get(reader.stream, [])
        if reader in readers:
            readers.remove(reader)
        if not readers:
            self._readers.pop(reader.stream, None)
        if not self._readers:
            self.changed()

    def changed(self) -> None:
        """There is more to read than the read under way names, or nothing at all: wake it, soon."""
        self._change.set()
        if self._blocked and self._ring is None:
            self._ring = asyncio.get_running_loop().call_later(WAKE_AFTER_S, self._wake_now)

    def _run(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a task do `work`, unless one does."""
        running = self._tasks.get(name)
        if self._closed or (running is not None and not running.done()):
            return
        task = self._tasks[name] = asyncio.get_running_loop().create_task(work())
        task.add_done_callback(lambda done: self._tasks.pop(name) if self._tasks.get(name) is done else None)

    # Reading for all.

    async def _read(self) -> None:
        """Read for as long as there are readers."""
        try:
            while self._readers:
                streams = self._wanted()
                self._change.clear()
                if not streams:
                    await self._change.wait()
                    continue
                try:
                    replies = await self._read_once(streams)
                except ResponseError as error:
                    await self._fail_those_at_fault(streams, error)
                except (RedisError, OSError) as error:
                    self._woken = START  # the next Redis may count from elsewhere
                    self._fail(error)
                else:
                    self._hand_out(streams, replies)
                    await asyncio.sleep(PAUSE_S_PER_READER * len(streams) if len(streams) > FEW else 0)
        except Exception as surprise:
            self._fail(surprise)
            raise

    def _wanted(self) -> dict[str, str]:
        """Each stream that someone with room reads, and the lowest place from which."""
        wanted: dict[str, str] = {}
        for stream, readers in self._readers.items():
            places = [reader.place for reader in readers if reader.has_room]
            if places:
                wanted[stream] = places[0] if len(places) == 1 else min(places, key=order)
        return wanted

    async def _read_once(self, streams: dict[str, str]) -> Any:
        named: dict[Any, Any] = {self._wake: self._woken, **streams} if self._wakes else dict(streams)
        count = max(16, min(READ_COUNT, MOST_IN_REPLY // len(streams)))
        self._blocked = True
        try:
            return await self._blocking.xread(named, count=count, block=round(self._block_s * 1000))
        finally:
            self._blocked = False
            if self._ring is not None:
                self._ring.cancel()
                self._ring = None

    def _hand_out(self, asked: dict[str, str], replies: Iterable[tuple[bytes, list[Entry]]]) -> None:
        for name, entries in replies:
            stream = name.decode()
            if stream == self._wake:
                self._woken = entries[-1][0].decode()
                continue
            for reader in self._readers.get(stream, ()):
                reader.put_in(asked[stream], entries)

    def _fail(self, error: Exception) -> None:
        """Tell all who read. They come back when they think it is time."""
        for readers in list(self._readers.values()):
            for reader in readers:
                reader.fail(error)

    async def _fail_those_at_fault(self, streams: dict[str, str], error: ResponseError) -> None:
        """Redis refused the whole read, for one stream that is none, or not ours to read: find it, spare the others."""
        try:
            answers = await self.questions.ask_all([Peek(stream) for stream in (self._wake, *streams)])
        except (RedisError, OSError) as lost:
            return self._fail(lost)
        if isinstance(answers[0], Exception) and self._wakes:
            self._wakes, self._block_s = False, SHORT_BLOCK_S
            return None
        found = dict(zip(streams, answers[1:], strict=True))
        refused = {stream: reason for stream, reason in found.items() if isinstance(reason, Exception)}
        if not refused:
            return self._fail(error)
        for stream, reason in refused.items():
            for reader in self._readers.get(stream, ()):
                reader.fail(reason)
        return None

    def _wake_now(self) -> None:
        self._wake_is_due = True
        self._run("wake", self._wake_up)

    async def _wake_up(self) -> None:
        while self._wake_is_due:
            self._wake_is_due = False
            try:
                await self.questions.ask(wake(self._wake))
                self._block_s = BLOCK_S
            except ResponseError:
                self._block_s = SHORT_BLOCK_S
            except (RedisError, OSError):
                pass  # no Redis: the read fails as well, and the next one names all


class Reader:
    """One reader of one stream: carries out the steps of its flow. Leave it by `with`, else its place stays taken."""

    def __init__(self, followers: Followers, stream: str) -> None:
        self._followers = followers
        self.stream = stream
        self.place = START
        """The last entry that is in the inbox, or was."""
        self._taken = START  # the last entry that the flow has
        self._inbox: list[Entry] = []
        self._joined = False
        self._waits: Answer | None = None

    @property
    def has_room(self) -> bool:
        """Whether more may be read for it."""
        return self._joined and len(self._inbox) < INBOX

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._joined = False
        self._inbox.clear()
        self._followers.leave(self)

    async def carry_out(self, flow: Flow[T]) -> T:
        """Do a flow's steps one by one and tell it what came of each."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._step(step)
                except RedisError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as done:
            return cast("T", done.value)

    async def _step(self, step: Step) -> Any:
        match step:
            case Call() | Get():
                return await self._followers.questions.ask(step)
            case Read(_, after, block_ms):
                return await self._read(after, block_ms / 1000)
            case Pause(seconds):
                return await asyncio.sleep(seconds)

    async def _read(self, after: str, block_s: float) -> list[Entry]:
        """What follows `after`, within `block_s`; it may be nothing."""
        if after != self._taken:
            self.place, self._taken, self._joined = after, after, False
            self._inbox.clear()
        if not self._inbox:
            if not self._joined:
                self._joined = True
                self._followers.join(self)
            loop = asyncio.get_running_loop()
            self._waits = loop.create_future()
            silence = loop.call_later(block_s, tell, self._waits, None)  # a third of what asyncio.timeout costs
            try:
                raised(await self._waits)
            finally:
                silence.cancel()
                self._waits = None
            if not self._inbox:
                return []
        was_full = not self.has_room
        entries, self._inbox = self._inbox, []
        self._taken = entries[-1][0].decode()
        if was_full and self._joined:
            self._followers.changed()
        return entries

    def put_in(self, asked: str, entries: list[Entry]) -> None:
        """Take what was read after `asked`, of which some may be here already."""
        if not self.has_room or order(asked) > order(self.place):
            return  # asked for others who are further: what lies between would be missing
        if asked != self.place:
            entries = [entry for entry in entries if order(entry[0].decode()) > order(self.place)]
        if entries:
            self._inbox += entries
            self.place = entries[-1][0].decode()
            if self._waits is not None:
                tell(self._waits, None)

    def fail(self, error: Exception) -> None:
        """Nothing is read any more, until the flow asks again."""
        self._joined = False
        if self._waits is not None:
            tell(self._waits, error)
