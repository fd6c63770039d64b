"""What the demo model can do: thirteen kinds of task in plain English, each with one exact answer.

In go a `random.Random`, a kind and a split; out comes an `Example`: a prompt and the only right answer to it. The split
is a hash of a task's arguments (never of its phrasing), so a held-out prompt asks for something no training prompt
asked for. Knows nothing of tokens, models or queues, except that `counting` makes jobs of a wanted number of tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from ops.demo import arguments
from ops.demo.arguments import LONGEST_ANSWER_TOKENS, Drawn
from ops.demo.words import DAYS, MONTHS

HELDOUT_ONE_IN = 10


class Split(StrEnum):
    """Which half of all arguments a prompt is drawn from."""

    TRAIN = "train"
    HELDOUT = "heldout"


@dataclass(frozen=True)
class Example:
    """A prompt and its exact answer. `kind` names the task."""

    kind: str
    prompt: str
    answer: str

    def is_answered_by(self, text: str) -> bool:
        """Whether `text`, the whole of what was generated without the end token, is the answer to the character."""
        return text == self.answer


@dataclass(frozen=True)
class Task:
    """A kind of task: the ways to ask for it and how its arguments are drawn. `weight` is its share of training."""

    kind: str
    weight: float
    phrases: tuple[str, ...]
    draw: Callable[[Random], Drawn]


def split_of(kind: str, key: str) -> Split:
    """Return the split that the arguments `key` of a task belong to, the same in every process and run."""
    return Split.HELDOUT if zlib.crc32(f"{kind}|{key}".encode()) % HELDOUT_ONE_IN == 0 else Split.TRAIN


def sample(rng: Random, kind: str, split: Split) -> Example:
    """Draw an example of `kind` from `split`; raise KeyError for a kind that is not in `TASKS`."""
    task = TASKS[kind]
    while True:
        drawn = task.draw(rng)
        if split_of(kind, drawn.key) is split:
            return Example(kind, _phrase(rng, task, drawn), drawn.answer)


def sample_any(rng: Random, split: Split) -> Example:
    """Draw an example of any kind, kinds weighted as in training."""
    kinds = list(TASKS)
    return sample(rng, rng.choices(kinds, [TASKS[kind].weight for kind in kinds])[0], split)


def counting(rng: Random, tokens: int, split: Split = Split.HELDOUT) -> Example:
    """Draw a `count` whose answer, its end token included, has at most `tokens` tokens, and at most two fewer.

    A number costs one token a digit. Raises ValueError unless 8 <= tokens <= LONGEST_ANSWER_TOKENS (there are too few
    shorter counts for a held-out one of each length; the other kinds have plenty).
    """
    if not 8 <= tokens <= LONGEST_ANSWER_TOKENS:
        raise ValueError(f"tokens must lie in 8..{LONGEST_ANSWER_TOKENS}, got {tokens}")
    while True:
        low = rng.randint(0, rng.choice((9, 99, 999 - tokens // 3)))
        high, cost = low, 1 + len(str(low))
        while high < 999 and cost + len(str(high + 1)) <= tokens:
            high += 1
            cost += len(str(high))
        drawn = arguments.counted(low, high)
        if cost > tokens - 3 and split_of("count", drawn.key) is split:
            return Example("count", _phrase(rng, TASKS["count"], drawn), drawn.answer)


def _phrase(rng: Random, task: Task, drawn: Drawn) -> str:
    """Fill one of the task's phrases, varied as people vary them: please, capitals, a full stop or none."""
    return rng.choice(variants(rng.choice(task.phrases))).format(**drawn.fields)


def variants(phrase: str) -> list[str]:
    """Return the ways one phrase may be written, its fields still open."""
    lower = phrase[0].lower() + phrase[1:]
    ways = [phrase, phrase, lower, f"Please {lower}"] if phrase[0].isalpha() else [phrase]
    if phrase[-1] in ".?:=" or "\n" in phrase:
        return ways
    return ways + [f"{way}." for way in ways]


_TASKS = (
    Task(
        "count",
        2.0,
        (
            "Count from {a} to {b}",
            "Count up from {a} to {b}",
            "Can you count from {a} to {b}?",
            "Start at {a} and count up to {b}",
            "List all the numbers from {a} to {b}",
            "I want you to count. Start at {a} and stop at {b}",
            "Count for me\nFrom: {a}\nTo: {b}",
        ),
        arguments.draw_count,
    ),
    Task(
        "count_down",
        1.2,
        (
            "Count down from {a} to {b}",
            "Count backwards from {a} to {b}",
            "Can you count down from {a} to {b}?",
            "Start at {a} and count down to {b}",
        ),
        arguments.draw_count_down,
    ),
    Task(
        "count_words",
        1.2,
        (
            "Count in words from {a} to {b}",
            "Count from {a} to {b} in words",
            "Can you count from {a} to {b} in words?",
            "List the numbers from {a} to {b} as words",
        ),
        arguments.draw_count_words,
    ),
    Task(
        "say",
        0.5,
        ("Write {a} in words", "Write the number {a} as words", "How do you say {a} in words?", "Say {a}"),
        arguments.draw_say,
    ),
    Task(
        "add",
        1.2,
        ("What is {a} + {b}?", "Add {a} and {b}", "{a} + {b} =", "What is {a} plus {b}?", "How much is {a} plus {b}?"),
        arguments.draw_add,
    ),
    Task(
        "compare",
        0.9,
        (
            "Which is larger, {a} or {b}?",
            "Which number is larger: {a} or {b}?",
            "Name the larger of {a} and {b}",
        ),
        arguments.draw_compare,
    ),
    Task(
        "sort",
        1.8,
        (
            "Sort {numbers}",
            "Sort these numbers: {numbers}",
            "Put these numbers in order: {numbers}",
            "Sort from small to large: {numbers}",
        ),
        arguments.draw_sort,
    ),
    Task(
        "reverse",
        1.5,
        ('Reverse "{w}"', 'Reverse the word "{w}"', 'Write "{w}" backwards', "Reverse this word: {w}"),
        arguments.draw_reverse,
    ),
    Task(
        "spell",
        0.8,
        ('Spell "{w}"', 'Spell the word "{w}"', 'How do you spell "{w}"?', "Spell this word: {w}"),
        arguments.draw_spell,
    ),
    Task(
        "repeat",
        0.9,
        ("Repeat: {text}", "Repeat after me: {text}", "Repeat this: {text}", "Say this again:\n{text}"),
        arguments.draw_repeat,
    ),
    Task(
        "weekdays",
        0.7,
        (
            "Name the {n} days after {first}",
            "Which {n} days come after {first}?",
            "Name the next {n} weekdays after {first}",
            "List {n} days after {first}",
        ),
        lambda rng: arguments.draw_cycle(rng, DAYS, 10),
    ),
    Task(
        "months",
        0.9,
        (
            "Name the {n} months after {first}",
            "Which {n} months come after {first}?",
            "Name the next {n} months after {first}",
            "List {n} months after {first}",
        ),
        lambda rng: arguments.draw_cycle(rng, MONTHS, 16),
    ),
    Task(
        "alphabet",
        0.5,
        (
            "Say the alphabet from {a} to {b}",
            "List the letters from {a} to {b}",
            "Write the letters from {a} to {b}",
            "Which letters go from {a} to {b}?",
        ),
        arguments.draw_alphabet,
    ),
)

TASKS: dict[str, Task] = {task.kind: task for task in _TASKS}
COUNTING_KINDS = frozenset({"count", "count_down", "count_words"})
