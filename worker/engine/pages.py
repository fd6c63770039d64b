"""PagePool: the K/V memory in pages of fixed size, each with a count of the sequences that hold it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class PagePool:
    """Page numbers 0 to num_pages - 1. A page is free exactly while its count is zero."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages - 1, -1, -1))  # the last freed, still in cache, is the next used
        self._references = [0] * num_pages

    @property
    def num_free(self) -> int:
        """Pages that can be taken."""
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """How many pages hold num_tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """`count` pages with one reference each. The caller has checked num_free."""
        assert count <= len(self._free), f"{count} pages asked for, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free and can't be shared"
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One reference less to each; those without any are free."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} was released twice"
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

    def check(self, held: Iterable[Iterable[int]]) -> None:
        """Assert that each page is free once or held as often as it is counted. `held`: the pages of each holder."""
        counted = Counter(page for pages in held for page in pages)
        free = Counter(self._free)
        for page in range(self.num_pages):
            references = self._references[page]
            assert counted[page] == references, f"page {page}: {counted[page]} holders, {references} counted"
            assert free[page] == (references == 0), f"page {page}: {references} references, {free[page]} times free"
