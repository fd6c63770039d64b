"""How an idle worker waits: threads block on Redis, one for each partition, and the loop hears them by a pipe.

They take nothing, so that a worker which dies while it waits has nothing to give back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

import redis as sync_redis

from producer.calls import wait_for_work
from producer.keys import Keys

BLOCK_S = 2.0
"""How long one wait blocks; also how late the threads of a stopping worker notice."""
_RETRY_S = 0.5


class Doorbell:
    """Rings, by making `fileno` readable, once there may be something to pull after `listen`."""

    def __init__(self, connect: Callable[[], sync_redis.Redis], partitions: Iterable[Keys], fingerprint: str) -> None:
        """connect: makes a client that does not send again, and waits for an answer longer than BLOCK_S."""
        self._connect, self._fingerprint = connect, fingerprint
        self._hear, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wanted = threading.Event()
        self._closed = threading.Event()
        for keys in partitions:
            threading.Thread(target=self._wait, args=(keys,), name=f"doorbell {keys.partition}", daemon=True).start()

    def fileno(self) -> int:
        """For select: readable once it has rung."""
        return self._hear

    def listen(self) -> None:
        """Ring at the next work, once. Does nothing while it is listening already."""
        self._wanted.set()

    def answer(self) -> bool:
        """Whether it has rung since the last answer."""
        try:
            return bool(os.read(self._hear, 64))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Stop listening. The threads end by themselves."""
        self._closed.set()
        self._wanted.set()

    def _wait(self, keys: Keys) -> None:
        with self._connect() as own:
            while True:
                self._wanted.wait()
                if self._closed.is_set():
                    return
                try:
                    heard = wait_for_work(own, keys, BLOCK_S, self._fingerprint)
                except (sync_redis.RedisError, OSError):
                    heard = False  # the loop, which talks to Redis too, says what is wrong
                    self._closed.wait(_RETRY_S)
                if heard and self._wanted.is_set() and not self._closed.is_set():
                    self._wanted.clear()  # what comes to another partition meanwhile is found by the pull of all
                    os.write(self._ring, b"!")
