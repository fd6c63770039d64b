"""The arguments of the demo's tasks and the one right answer to them: `draw_count(rng)` and its fellows.

Small arguments are drawn more often than large ones, and an answer is never longer than the model was trained for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ops.demo.words import LETTERS, draw_word, number_in_words

LONGEST_ANSWER_TOKENS = 340  # the longest the model is trained on, its end token included


@dataclass(frozen=True)
class Drawn:
    """One draw of a task's arguments: what identifies them, what fills the phrase's fields, and the answer."""

    key: str
    fields: dict[str, str]
    answer: str


def _span(rng: Random, most: int, cost: Callable[[int], int], longest: int) -> tuple[int, int]:
    """Draw low < high <= most: short spans more often than long, at most `longest` tokens as `cost` counts them."""
    budget = int(4 * (longest / 4) ** rng.random() ** 1.6)
    low = rng.randint(0, most - 1) if rng.random() < 0.75 else rng.randint(0, min(20, most - 1))
    high, spent = low + 1, cost(low) + cost(low + 1)
    while high < most and spent + cost(high + 1) <= budget:
        high += 1
        spent += cost(high)
    return low, high


def _digits(number: int) -> int:
    return len(str(number))


def counted(low: int, high: int) -> Drawn:
    answer = " ".join(map(str, range(low, high + 1)))
    return Drawn(f"{low} {high}", {"a": str(low), "b": str(high)}, answer)


def draw_count(rng: Random) -> Drawn:
    return counted(*_span(rng, 999, _digits, LONGEST_ANSWER_TOKENS - 1))


def draw_count_down(rng: Random) -> Drawn:
    low, high = _span(rng, 999, _digits, LONGEST_ANSWER_TOKENS - 1)
    return Drawn(f"{low} {high}", {"a": str(high), "b": str(low)}, " ".join(map(str, range(high, low - 1, -1))))


def draw_count_words(rng: Random) -> Drawn:
    low, high = _span(rng, 100, lambda number: 2, 200)
    say = number_in_words if rng.random() < 0.5 else str
    answer = " ".join(map(number_in_words, range(low, high + 1)))
    return Drawn(f"{low} {high}", {"a": say(low), "b": say(high)}, answer)


def draw_say(rng: Random) -> Drawn:
    number = rng.randint(0, 99) if rng.random() < 0.2 else rng.randint(100, 999)
    return Drawn(str(number), {"a": str(number)}, number_in_words(number))


def draw_add(rng: Random) -> Drawn:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    return Drawn(f"{a} {b}", {"a": str(a), "b": str(b)}, _column_sum(a, b))


def _column_sum(a: int, b: int) -> str:
    """Add as taught at school, ones before tens: in one breath the carry would be wanted before it is known."""
    carry = (a % 10 + b % 10) // 10
    ones = f"{a % 10} + {b % 10} = {a % 10 + b % 10}"
    tens = f"{a // 10} + {b // 10} + {carry} = {a // 10 + b // 10 + carry}"
    return f"ones {ones}, tens {tens}, sum {a + b}"


def draw_compare(rng: Random) -> Drawn:
    a, b = rng.sample(range(100 if rng.random() < 0.4 else 1000), 2)
    return Drawn(f"{min(a, b)} {max(a, b)}", {"a": str(a), "b": str(b)}, str(max(a, b)))


def draw_sort(rng: Random) -> Drawn:
    numbers = rng.sample(range(10, 100), rng.randint(2, 6))
    separator = rng.choice((" ", ", "))
    ordered = " ".join(map(str, sorted(numbers)))
    return Drawn(ordered, {"numbers": separator.join(map(str, numbers))}, ordered)


def draw_reverse(rng: Random) -> Drawn:
    word = draw_word(rng, longest=8)
    return Drawn(word, {"w": word}, word[::-1])


def draw_spell(rng: Random) -> Drawn:
    word = draw_word(rng)
    return Drawn(word, {"w": word}, "-".join(word))


def draw_repeat(rng: Random) -> Drawn:
    text = " ".join(draw_word(rng) for _ in range(rng.randint(1, 5)))
    return Drawn(text, {"text": text}, text)


def draw_cycle(rng: Random, names: list[str], most: int) -> Drawn:
    first, count = rng.randrange(len(names)), rng.randint(2, most)
    answer = " ".join(names[(first + 1 + after) % len(names)] for after in range(count))
    return Drawn(f"{first} {count}", {"first": names[first], "n": str(count)}, answer)


def draw_alphabet(rng: Random) -> Drawn:
    first, last = sorted(rng.sample(LETTERS, 2))
    answer = " ".join(LETTERS[LETTERS.index(first) : LETTERS.index(last) + 1])
    return Drawn(f"{first} {last}", {"a": first, "b": last}, answer)
