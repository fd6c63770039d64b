"""Plan: what a step is to compute, as the scheduler decides it and runners launch it."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.sequence import Sequence


@dataclass(frozen=True)
class Plan:
    """A step: how many tokens of each sequence, those with one token first; who was admitted and who preempted.

    drafts     guesses that stand behind a sequence's last token and count among its tokens (speculation.py)
    caught_up  those of its sequences that are to get a token, in the order of `tokens`
    grown      those that were given pages beside those they were admitted with
    """

    tokens: dict[Sequence, int]
    admitted: list[Sequence]
    preempted: list[Sequence]
    drafts: dict[Sequence, list[int]]
    caught_up: list[Sequence]
    grown: list[Sequence]

    @property
    def num_decode(self) -> int:
        """Sequences in front that add one token."""
        return list(self.tokens.values()).count(1)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.tokens.values())
