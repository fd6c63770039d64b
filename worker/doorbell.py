"""How an idle worker waits: a thread blocks on Redis, on a connection of its own, and the loop hears it by a pipe.

It takes nothing, so that a worker which dies while it waits has nothing to give back.
"""

from __future__ import annotations

import os
import threading

import redis as sync_redis

from producer.calls import wait_for_work
from producer.keys import Keys

_BLOCK_S = 2.0  # how long one wait blocks; also how late a stopping worker's thread notices
_RETRY_S = 0.5


class Doorbell:
    """Rings, by making `fileno` readable, once there may be something to pull after `listen`."""

    def __init__(self, redis: sync_redis.Redis, keys: Keys, fingerprint: str) -> None:
        """redis: a client whose socket timeout exceeds two seconds, which does not retry, used by nobody else."""
        self._redis, self._keys, self._fingerprint = redis, keys, fingerprint
        self._hear, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="doorbell", daemon=True)
        self._thread.start()

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
        """Stop listening. The thread ends by itself."""
        self._closed.set()
        self._wanted.set()

    def _wait(self) -> None:
        while True:
            self._wanted.wait()
            if self._closed.is_set():
                return
            try:
                heard = wait_for_work(self._redis, self._keys, _BLOCK_S, self._fingerprint)
            except (sync_redis.RedisError, OSError):
                heard = False  # the loop, which talks to Redis too, says what is wrong
                self._closed.wait(_RETRY_S)
            if heard and not self._closed.is_set():
                self._wanted.clear()
                os.write(self._ring, b"!")
