"""Stop strings over a text that arrives in parts. Characters go in; out comes which stop string completes first, and
how much of the text's end could still become one. Knows nothing of tokens.

Aho and Corasick's automaton (Efficient string matching, 1975): a state stands for the longest end of the text that
begins some stop string. One dictionary look-up a character, however many stop strings and wherever the parts are cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class StopStrings:
    """The automaton of some stop strings; it holds no text, so that every job with the same ones shares it.

    State 0 is "nothing of a stop string". For a state s reached by reading a text:
    next[s].get(char, 0)  the state after one more character
    held[s]   how many characters the text's longest end has that is a proper prefix of a stop string
    ended[s]  how many characters the longest stop string has that the text ends in; 0: it ends in none
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: at least one, none of them the empty string."""
        assert stops
        assert all(stops)
        self.next: list[dict[str, int]] = [{}]
        depths = [0]
        whole = set()
        for stop in stops:
            state = 0
            for depth, char in enumerate(stop, start=1):
                if char not in self.next[state]:
                    self.next[state][char] = len(depths)
                    self.next.append({})
                    depths.append(depth)
                state = self.next[state][char]
            whole.add(state)
        self.held = [0] * len(depths)
        self.ended = [0] * len(depths)
        self._complete(depths, whole)

    def _complete(self, depths: list[int], whole: set[int]) -> None:
        """Breadth first, so that the state of a state's longest proper end (`shorter`) is complete before it."""
        todo = deque((child, 0) for child in self.next[0].values())
        while todo:
            state, shorter = todo.popleft()
            children = self.next[state]
            todo.extend((child, self.next[shorter].get(char, 0)) for char, child in children.items())
            self.held[state] = depths[state] if children else self.held[shorter]
            self.ended[state] = depths[state] if state in whole else self.ended[shorter]
            self.next[state] = self.next[shorter] | children


@lru_cache(maxsize=256)
def stop_strings(stops: tuple[str, ...]) -> StopStrings:
    """The automaton of `stops`, made once for all the jobs that have the same."""
    return StopStrings(stops)
