"""A power cut: SIGKILL, and of the append-only file only what was on the disk stays.

SIGKILL alone takes nothing back: what Redis has written lies in the kernel's cache, and only a machine that dies loses
that. With `appendfsync everysec` it is what came within the last second; here it is cut off the file's end. Knows the
one file of Redis 6 and the increments of Redis 7.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path

from ops.redis_server import RedisServer

_LOOK_S = 0.02
_KEPT_S = 3.0


class AppendOnlyFile:
    """Watches how the file of a server grows, and cuts it back while the server is dead."""

    def __init__(self, server: RedisServer) -> None:
        self._directory = server.directory
        self._sizes: deque[tuple[float, Path, int]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="append-only file", daemon=True)
        self._thread.start()

    def cut(self, seconds: float) -> float:
        """Take back what was written in the last `seconds`: since when, in Unix seconds."""
        until = time.time() - seconds
        path = self._path()
        assert path is not None, f"no append-only file in {self._directory}"
        known = [(at, size) for at, of, size in list(self._sizes) if of == path and at <= until]
        if not known:
            return time.time()  # it is younger than that
        at, size = known[-1]
        with path.open("r+b") as file:
            file.truncate(min(size, path.stat().st_size))
        return at

    def close(self) -> None:
        """End the watch."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            now, path = time.time(), self._path()
            if path is not None:
                self._sizes.append((now, path, path.stat().st_size))
            while self._sizes and self._sizes[0][0] < now - _KEPT_S:
                self._sizes.popleft()

    def _path(self) -> Path | None:
        found = [*self._directory.glob("appendonly.aof"), *self._directory.glob("appendonlydir/*.incr.aof")]
        return max(found, key=lambda path: path.stat().st_mtime) if found else None
