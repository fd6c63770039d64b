"""Head-room: how many pages admission leaves free so that those who run can grow, given how that went lately.

The least is the watermark. On top comes a share of all pages that the running sequences could still need up to their
max_tokens. Most end long before, so the share is small; each step with a preemption shows that it was too small and
raises it, and it decays while there is none. 0 would admit whatever fits and compute much of it twice, 1 reserves
max_tokens and leaves memory unused. What that gives is measured in ops/bench/LOG.md.
"""

from __future__ import annotations

_RISE = 0.1  # a step with a preemption
_DECAY = 0.998  # a step without: half of it is gone after 350


class Headroom:
    """The share, as it rises and decays."""

    def __init__(self, watermark_pages: int, share: float) -> None:
        """share: what it is before anything is known."""
        self._watermark_pages = watermark_pages
        self.share = share

    def pages(self, growth: int) -> int:
        """Pages to leave free; growth: what the running and the one to be admitted could still take."""
        return self._watermark_pages + int(self.share * growth)

    def step(self, *, preempted: bool) -> None:
        """A step was planned: pages ran out in it, or they did not."""
        self.share = min(1.0, self.share + _RISE) if preempted else self.share * _DECAY
