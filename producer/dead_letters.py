"""Dead letters for operators: look at them, submit their jobs anew, forget them. Waits for each answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

from producer import calls
from producer.calls.dead import DeadLetter, read_letters, settle
from producer.client import Producer
from producer.connection import DEFAULT_URL, TIMEOUT_S, connect, speaking_to
from producer.errors import JobUnknown
from producer.keys import Keys

_PAGE = 500  # letters a read; each has its whole payload


class DeadLetters:
    """The dead letters of one queue, over all its partitions.

    Every method raises RedisUnavailable where Redis does not answer.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, queue: str = "default", partitions: int = 1, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.url, self._partitions = url, partitions
        self._producer = Producer(url, queue=queue, partitions=partitions, timeout_s=timeout_s)
        self._queue = queue
        self._redis = connect(url, timeout_s=timeout_s)

    def find(
        self,
        jobs: Sequence[str] = (),
        *,
        why: str | None = None,
        older_than_s: float | None = None,
        newer_than_s: float | None = None,
    ) -> Iterator[DeadLetter]:
        """Letters, the oldest first: of these jobs, or all; that died of `why` (in a word), or were heard to in their
        history; that lie there for longer, or not as long, by Redis' clock."""
        wanted = set(jobs)
        for partition in range(self._partitions):
            keys = Keys(self._queue, partition)
            for letter in self._all(keys, older_than_s, newer_than_s):
                told = why is None or letter.why == why or any(why in line.what for line in letter.history)
                if told and (not wanted or letter.job_id in wanted):
                    yield letter

    def requeue(self, letter: DeadLetter) -> str:
        """Submit a letter's job anew, with a fresh deadline, and take the letter away; the new job's id.

        Broken off, it is made again and is the same new job. Raises QueueFull (the letter stays), Undecodable.
        """
        new_id = self._producer.submit(letter.job_anew())
        self._settle(letter, new_id)
        return new_id

    def purge(self, letter: DeadLetter) -> bool:
        """Forget a letter for good. False: it was gone."""
        return self._settle(letter, "")

    def get(self, job_id: str) -> DeadLetter:
        """The letter of one job. Raises JobUnknown."""
        for letter in self.find([job_id]):
            return letter
        raise JobUnknown(job_id, "there is no dead letter of it: it was requeued or purged, or the job did not die")

    def close(self) -> None:
        """Close all connections."""
        self._producer.close()
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, letter: DeadLetter, requeued_as: str) -> bool:
        with speaking_to(self.url):
            return calls.run(self._redis, settle(Keys.of(self._queue, letter.job_id), letter, requeued_as))

    def _all(self, keys: Keys, older_than_s: float | None, newer_than_s: float | None) -> Iterator[DeadLetter]:
        first, last = "-", "+"
        with speaking_to(self.url):
            if older_than_s is not None or newer_than_s is not None:
                now = calls.run(self._redis, calls.clock(keys))
                last = last if older_than_s is None else str(max(0, round((now - older_than_s) * 1000)))
                first = first if newer_than_s is None else str(max(0, round((now - newer_than_s) * 1000)))
        while True:
            with speaking_to(self.url):
                entries: Any = self._redis.xrange(keys.dead, first, last, count=_PAGE)
            letters = read_letters(entries)
            yield from letters
            if len(letters) < _PAGE:
                return
            first = f"({letters[-1].entry}"
