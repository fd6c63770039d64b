"""The partitions of its queue that a worker serves: whose keys a delivery has, and whose turn it is.

Each partition is a slot of its own on a cluster, so a call names jobs of one partition only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from producer.calls import Delivery
from producer.keys import Keys

T = TypeVar("T")


class Partitions:
    """Keys of one or more partitions of one queue."""

    def __init__(self, queue: str, numbers: Iterable[int]) -> None:
        self._keys = {number: Keys(queue, number) for number in numbers}
        self._first = 0

    def __iter__(self) -> Iterator[Keys]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, delivery: Delivery) -> Keys:
        """The partition a delivery came from, whatever its job's id says."""
        return self._keys[delivery.partition]

    def in_turn(self) -> list[Keys]:
        """All, beginning with the one after that with which the last call began."""
        keys = list(self)
        self._first = (self._first + 1) % len(keys)
        return keys[self._first :] + keys[: self._first]

    def split(self, items: Iterable[T], delivery: Callable[[T], Delivery]) -> list[tuple[Keys, list[T]]]:
        """The items of each partition that has some, in their order."""
        parts: dict[int, list[T]] = {}
        for item in items:
            parts.setdefault(delivery(item).partition, []).append(item)
        return [(self._keys[number], part) for number, part in parts.items()]
