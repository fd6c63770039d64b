"""The token budget of the next step, from what steps have taken: as many tokens as fit the step time aimed at.

While some sequences decode, each step with a chunk of a prompt is a gap between two of their tokens. A step that spent
most of its budget took so many seconds for so many tokens; the budget moves towards the number that would have taken
the time aimed at. What a token costs (the model, the machine, the length of the contexts) need not be known. Where
nobody waits for a token the budget is the most that is allowed.
"""

from __future__ import annotations

LEAST_CHUNK = 64  # tokens of prompts a step may always take: fewer would waste what reading the weights costs
_FIRST = 256  # before anything was measured
_GAIN = 0.5  # how far one step moves it


class TokenBudget:
    """Chooses between max_rows + LEAST_CHUNK and `most` tokens."""

    def __init__(self, most: int, step_time_s: float | None) -> None:
        """step_time_s None: always `most`."""
        self._most, self._step_time_s = most, step_time_s
        self._tokens = float(min(_FIRST, most))

    def next(self, num_decode: int) -> int:
        """Most tokens of a step in which num_decode sequences decode."""
        if self._step_time_s is None or num_decode == 0:
            return self._most
        return min(self._most, max(int(self._tokens), num_decode + LEAST_CHUNK))

    def shrink(self, least: int) -> bool:
        """Halve the most there may be, to `least` at least: memory ran out. Whether that made it less."""
        before, self._most = self._most, min(self._most, max(least, self._most // 2))
        self._tokens = min(self._tokens, float(self._most))
        return self._most < before

    def took(self, tokens: int, num_decode: int, seconds: float) -> None:
        """A step of so many tokens, num_decode of them decodes, took so long."""
        if self._step_time_s is None or tokens - num_decode < LEAST_CHUNK // 2 or 2 * tokens < self._tokens:
            return  # too little of a prompt to tell what prompts cost
        fitting = tokens * self._step_time_s / seconds
        self._tokens += _GAIN * (min(fitting, self._most) - self._tokens)
