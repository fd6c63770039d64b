"""The demo's jobs: what is asked, by which lane, and the one right answer.

Lengths are drawn evenly over their logarithm, from 2 tokens to some 300, as answers of real services spread: most are
short, most tokens are in the long ones. All prompts are held out: the model was not trained on them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any

from ops.demo.arguments import LONGEST_ANSWER_TOKENS
from ops.demo.tasks import Example, Split, counting, sample_any
from producer import Job
from producer.keys import Lane

MAX_TOKENS = LONGEST_ANSWER_TOKENS + 20  # an answer that runs on is wrong; it need not run far
LANE_SHARES: dict[Lane, int] = {"high": 15, "normal": 55, "low": 30}  # per cent of the jobs
COUNTING_SHARE = 0.45  # counts make up the long answers; the other kinds of task are mostly short
SHORTEST_COUNT = 10  # tokens


@dataclass(frozen=True)
class DemoJob:
    """A job as it is submitted, and the exact answer to it."""

    job: Job
    example: Example


class Supply:
    """Draws jobs. `stock` draws ahead, while there is time; `take` hands out what was drawn, and draws what lacks."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._examples: deque[Example] = deque()

    @property
    def stocked(self) -> int:
        """How many are drawn and not taken."""
        return len(self._examples)

    def stock(self, count: int) -> None:
        """Draw `count` more: about half a millisecond each."""
        self._examples.extend(self._draw() for _ in range(count))

    def take(self, count: int) -> list[DemoJob]:
        """The next `count` jobs, new ids and all."""
        self.stock(max(0, count - len(self._examples)))
        return [self._job(self._examples.popleft()) for _ in range(count)]

    def _draw(self) -> Example:
        if self._rng.random() < COUNTING_SHARE:
            tokens = SHORTEST_COUNT * (LONGEST_ANSWER_TOKENS / SHORTEST_COUNT) ** self._rng.random()
            return counting(self._rng, int(tokens))
        return sample_any(self._rng, Split.HELDOUT)

    def _job(self, example: Example) -> DemoJob:
        """Half of them come as chats, half as plain text."""
        fields: dict[str, Any] = {"lane": self._rng.choices(list(LANE_SHARES), list(LANE_SHARES.values()))[0]}
        if self._rng.random() < 0.5:
            fields["messages"] = [{"role": "user", "content": example.prompt}]
        else:
            fields["prompt"] = example.prompt + "\n"
        return DemoJob(Job.model_validate({**fields, "sampling": {"max_tokens": MAX_TOKENS}}), example)
