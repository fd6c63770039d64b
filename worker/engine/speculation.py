"""Speculation by prompt lookup: what a sequence says next is guessed from what stands in its prompt and output already.

Where its last two tokens stood before, what followed there is the guess, and it goes on there for as long as it is
right. A step computes guessed tokens (drafts) behind the last real one, like a chunk of a prompt, and draws a token at
each place with the noise of that place; drafts hold as far as they are what was drawn. So the tokens are those of a run
without drafts, and only the time differs.

Whether it pays is measured. Each guess is held against the token that is drawn, also where it was no draft, so how
often guesses are right is known at no cost; and what a token more takes is known from the steps there were. A draft is
taken while the chance that it holds is worth more than the time it takes. Knows no pages, rows or tensors.
"""

from __future__ import annotations

from itertools import pairwise

_PAIR = 32  # bits of a token id in the key of a pair
_STEADY = 4  # guesses right in a row after which one more says nothing new
_WEIGHT = 0.1  # of the newest guess in a sequence's shares, and of a sequence that ends in those of all
_FIRST_SHARES = (0.4, 0.6, 0.75, 0.85, 0.9)  # before anything was measured

_FADE = 0.98  # weight of a step's time once the next is there
_LEAST_SPREAD = 0.03  # of steps' sizes, of their mean: steps more alike don't tell what a token more takes
_FEW = 5.0  # steps that tell nothing yet of what a step takes
_FIRST_BAR = 0.5  # least chance of a draft where that is not known
_LEAST_BAR = 0.05
_LEAST_USE, _ONE_IN = 0.01, 8
_FIRST_USE = 0.1
_OF_ANY = 0.03  # what a step takes more for having any drafts: rows of several tokens beside rows of one


class Lookup:
    """What one sequence has said, where each pair of tokens last stood, and what that guesses.

    chance: how likely the next token is the one guessed, by what came of guesses before; 0 where there is no guess.
    """

    __slots__ = ("_after", "_at", "_began", "_history", "_run", "chance", "shares", "steady")

    def __init__(self, history: list[int], shares: list[float]) -> None:
        """history: two tokens or more. shares: how often guesses are right, by how many before them were; it moves."""
        self._history, self.shares = history, shares
        *pairs, last = [a << _PAIR | b for a, b in pairwise(history)]  # numbers: tuples would keep the collector busy
        self._after = dict(zip(pairs, range(2, len(history)), strict=True))  # the last place of each
        self._run = 0  # guesses right in a row, as far as they are told apart
        self._began = len(history)
        self.steady = 0  # tokens that came at the end of a run of right guesses
        self._at = self._after.get(last)  # place of the guess in the history; None: there is none
        self._after[last] = len(history)
        self.chance = 0.0 if self._at is None else shares[0]

    @property
    def seen(self) -> int:
        """Tokens seen."""
        return len(self._history) - self._began

    def saw(self, token: int) -> None:
        """The sequence's next token was drawn."""
        history, after, at = self._history, self._after, self._at
        last = history[-1] << _PAIR | token
        history.append(token)
        before = after.get(last)
        after[last] = len(history)
        if at is not None:
            run, shares = self._run, self.shares
            if history[at] == token:
                shares[run] += _WEIGHT * (1.0 - shares[run])
                self._at = at + 1
                if run < _STEADY:
                    self._run = run + 1
                else:
                    self.steady += 1
                self.chance = shares[self._run]
                return
            shares[run] -= _WEIGHT * shares[run]
            self._run = 0
        self._at = before
        self.chance = 0.0 if before is None else self.shares[0]

    def drafts(self, most: int, bar: float) -> tuple[list[int], float]:
        """The next tokens as guessed, at most `most`, each with a chance above `bar` that it and all before it hold.

        And by how much these chances are above it, summed.
        """
        at, chance, count, gain = self._at, 1.0, 0, 0.0
        if at is None:
            return [], 0.0
        while count < most:
            chance *= self.shares[min(self._run + count, _STEADY)]
            if chance <= bar:
                break
            count, gain = count + 1, gain + chance - bar
        found = self._history[at : at + count]
        if len(found) < count:  # a text that repeats itself: what follows is guessed too
            found = (found * (count // len(found) + 1))[:count]
        return found, gain


class StepCost:
    """Seconds of steps in which every token has its logits taken, as a line over their number: fitted, forgetting."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens, without chunks of prompts, took so long. A pause in it counts as a step at most."""
        if self._n > _FEW:
            seconds = min(seconds, 2.0 * max(self._line(tokens)[1], self._y / self._n))
        self._n = _FADE * self._n + 1.0
        self._x = _FADE * self._x + tokens
        self._y = _FADE * self._y + seconds
        self._xx = _FADE * self._xx + tokens * tokens
        self._xy = _FADE * self._xy + tokens * seconds

    def bar(self, tokens: int) -> float:
        """What one token more takes of the time a step of `tokens` takes for each: the chance a draft must have.

        From 0.05 to 1, the price of a token that is sure to be used.
        """
        slope, whole = self._line(tokens)
        if slope <= 0.0 or whole <= 0.0:  # not known, or noise
            return _FIRST_BAR
        return min(1.0, max(_LEAST_BAR, slope * tokens / whole))

    def _line(self, tokens: int) -> tuple[float, float]:
        """(seconds a token more takes, 0 where that is not known; seconds of a step of `tokens`)."""
        if self._n == 0.0:
            return 0.0, 0.0
        spread = self._n * self._xx - self._x * self._x
        if spread <= (_LEAST_SPREAD * self._x) ** 2:
            return 0.0, self._y / self._n
        slope = (self._n * self._xy - self._x * self._y) / spread
        return slope, (self._y + slope * (self._n * tokens - self._x)) / self._n


class Speculation:
    """What one engine knows of guesses: how often they are right, what a token more takes, how many a row may have."""

    def __init__(self, max_drafts: int) -> None:
        self.max_drafts = max_drafts
        self.cost = StepCost()
        self._shares = list(_FIRST_SHARES)
        self._use = _FIRST_USE  # share of tokens that steady runs of guesses have right
        self._arrivals = 0

    def wants_next(self) -> bool:
        """Whether the sequence that arrives is to have a lookup: each, but where they are of no use every eighth."""
        self._arrivals += 1
        return self._use > _LEAST_USE or self._arrivals % _ONE_IN == 0

    def look_up(self, history: list[int]) -> Lookup:
        """A sequence's lookup, from its tokens so far, which become the lookup's. It begins with what others met."""
        return Lookup(history, list(self._shares))

    def learn(self, lookup: Lookup) -> None:
        """A sequence has ended: the next begin a little more like it."""
        for run, share in enumerate(lookup.shares):
            self._shares[run] += _WEIGHT * (share - self._shares[run])
        self._use += _WEIGHT * (lookup.steady / max(1, lookup.seen) - self._use)

    def pays(self, gain: float, rows: int) -> bool:
        """Whether drafts that gain so many tokens in a step of so many rows are worth that there are any."""
        return gain > _OF_ANY * rows
