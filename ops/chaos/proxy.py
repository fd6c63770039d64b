"""A TCP proxy on loopback between clients and a server, with what may happen to a network: cut, slow, silent.

Goes in: the server's port. Comes out: a `Proxy` with a port of its own and the methods `cut`, `delay`, `blackhole`,
`lose_answers`, `lead_to` and `heal`, for any thread; each has taken effect when it returns. Knows nothing above TCP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

_CHUNK = 65536


class Proxy:
    """One server behind one port. Use as a context manager, or call `close`."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._delay_s = 0.0
        self._loses_requests = self._loses_answers = False
        self._links: set[_Link] = set()
        self.accepted = 0  # connections so far
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._wait_for(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def open_connections(self) -> int:
        """Connections that lead through here now, silent ones too."""
        return len(self._links)

    def cut(self) -> None:
        """Break all connections there are, as a restarting router does. Later ones go through."""
        self._do(self._break_all)

    def delay(self, seconds: float) -> None:
        """From now on each answer arrives this much later."""
        self._do(lambda: setattr(self, "_delay_s", seconds))

    def blackhole(self) -> None:
        """From now on nothing arrives on either side and nobody is told: connections stay open, also new ones."""
        self._do(lambda: self._lose(requests=True, answers=True))

    def lose_answers(self) -> None:
        """From now on the server hears everything and its answers go nowhere."""
        self._do(lambda: self._lose(requests=False, answers=True))

    def lead_to(self, server_port: int) -> None:
        """From now on new connections go to another server, as where a name or an address has moved."""
        self._do(lambda: setattr(self, "_server_port", server_port))

    def heal(self) -> None:
        """End delay and silence. A connection that has lost something stays half-open, since the gap can't be filled:
        its two ends never hear from each other again, not even that one has closed.
        """
        self._do(lambda: self._lose(requests=False, answers=False))

    def close(self) -> None:
        """Break everything off and end the thread."""

        async def end() -> None:
            self._server.close()
            tasks = [task for link in self._links for task in link.tasks]
            self._break_all()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._wait_for(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _break_all(self) -> None:
        for link in self._links:
            link.break_off()

    def _lose(self, *, requests: bool, answers: bool) -> None:
        self._loses_requests, self._loses_answers = requests, answers
        if not answers:
            self._delay_s = 0.0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, server[1])
        self._links.add(link)
        try:
            await link.carry(
                self._pump(reader, server[1], link, lambda: (0.0, self._loses_requests)),
                self._pump(server[0], writer, link, lambda: (self._delay_s, self._loses_answers)),
            )
        finally:
            self._links.discard(link)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        link: _Link,
        weather: Callable[[], tuple[float, bool]],
    ) -> None:
        """Bring what comes out of `source` to `sink`, as late as the weather says."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

        async def deliver() -> None:
            while True:
                at, data = await due.get()
                if (rest := at - self._loop.time()) > 0:
                    await asyncio.sleep(rest)
                if weather()[1]:
                    link.is_silent = True
                if not link.is_silent:
                    sink.write(data)
                    await sink.drain()

        delivery = asyncio.create_task(deliver())
        try:
            with suppress(OSError):
                while data := await source.read(_CHUNK):
                    await due.put((self._loop.time() + weather()[0], data))
        finally:
            delivery.cancel()
            link.is_silent = link.is_silent or weather()[1]

    def _do(self, change: Callable[[], object]) -> None:
        async def change_it() -> None:
            change()

        self._wait_for(change_it())

    def _wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)


class _Link:
    """A client's connection and ours to the server for it."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.is_silent = False
        self.tasks: list[asyncio.Task[None]] = []
        self._writers = writers

    async def carry(self, *pumps: Coroutine[Any, Any, None]) -> None:
        """Run both directions until one side ends, or both where the other can't hear of it."""
        self.tasks = [asyncio.create_task(pump) for pump in pumps]
        try:
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.is_silent:
                await asyncio.wait(self.tasks)
        finally:
            self.break_off()
            for task in self.tasks:
                task.cancel()

    def break_off(self) -> None:
        """Reset both sides."""
        for writer in self._writers:
            writer.transport.abort()
