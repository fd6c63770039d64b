"""PagePool: the K/V memory in pages of fixed size, each with a count of the sequences that hold it, and a prefix cache.

A page that is full can enter the cache under a key (worker/engine/prefix.py). It stays readable after its last holder
let go of it, until its memory is needed: the page that has been without a holder for longest goes first.

Nothing is ever copied on write. Only full pages are shared, and a full page is never written again: a sequence writes
where its computed tokens end, which is past every page it shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class PagePool:
    """Page numbers 0 to num_pages - 1. Each is one of three at any time: held, idle (cached, no holder) or empty.

    An idle page counts as free, because it can be taken; its key is forgotten then.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._references = [0] * num_pages
        self._empty = list(range(num_pages - 1, -1, -1))  # the last freed, still in the CPU's cache, is the next used
        self._idle: dict[int, None] = {}  # in the order in which they were let go
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Pages that can be taken."""
        return len(self._empty) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Pages that can be found by a key."""
        return len(self._page_of)

    def pages_for(self, num_tokens: int) -> int:
        """How many pages hold num_tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """`count` pages with one reference each, empty ones first. The caller has checked num_free."""
        assert count <= self.num_free, f"{count} pages asked for, {self.num_free} free"
        taken = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The cached pages of the first keys, up to the first that is not there. Valid until the next take."""
        found = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            found.append(page)
        return found

    def num_idle(self, pages: Iterable[int]) -> int:
        """How many of `pages` nobody holds: holding them takes as many from num_free."""
        return sum(page in self._idle for page in pages)

    def hold(self, pages: Iterable[int]) -> None:
        """One more reference to each; they are held or cached."""
        for page in pages:
            if self._references[page] == 0:
                assert page in self._idle, f"page {page} is empty and can't be held"
                del self._idle[page]
            self._references[page] += 1

    def enter(self, page: int, key: bytes) -> None:
        """Let a held page, full and computed, be found by `key`. One that another page has already is left to that."""
        assert self._references[page] > 0, f"page {page} has no holder and can't enter the cache"
        assert page not in self._key_of, f"page {page} is in the cache under another key"
        if key not in self._page_of:
            self._page_of[key], self._key_of[page] = page, key

    def release(self, pages: Iterable[int]) -> None:
        """One reference less to each, in this order; those without any are free, the first to be taken again first."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} was released twice"
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._empty.append(page)

    def forget(self) -> None:
        """Empty the cache; pages that are held stay so."""
        self._empty += self._idle
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()

    def _evict(self) -> int:
        """The page that has been idle for longest, out of the cache."""
        page = next(iter(self._idle))
        del self._idle[page]
        del self._page_of[self._key_of.pop(page)]
        return page

    def check(self, held: Iterable[Iterable[int]]) -> None:
        """Assert that held + idle + empty = num_pages, page by page. `held`: the pages of each holder.

        A page is held as often as it is counted; without a holder it is idle if it has a key, else empty, and once
        only; keys and cached pages name each other.
        """
        holders = Counter(page for pages in held for page in pages)
        empty = Counter(self._empty)
        for page in range(self.num_pages):
            references, cached = self._references[page], page in self._key_of
            assert holders[page] == references, f"page {page}: {holders[page]} holders, {references} counted"
            assert (page in self._idle) == (references == 0 and cached), f"page {page}: wrongly idle, or wrongly not"
            free = int(references == 0 and not cached)
            assert empty[page] == free, f"page {page}: {references} references, {empty[page]} times empty"
        assert {page: key for key, page in self._page_of.items()} == self._key_of, "keys and pages disagree"
