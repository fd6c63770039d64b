"""What comes out of an engine: of a step, of a sequence, and counted since the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from worker.engine.adjustments import Logprob
from worker.engine.sequence import FinishReason


class Emission(NamedTuple):  # a dataclass takes twice as long to make, and there is one for each token
    """What a step gave a sequence: a token, or several, and why it ended if it did. A failed one has an error and none.

    cached_tokens: those of its prompt whose K/V came from the prefix cache. logprobs: its tokens', if it asks for them.
    """

    id: int
    token_ids: list[int]
    reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    logprobs: list[Logprob] | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's emissions, and how full the batch was: rows that took part, tokens computed, sequences preempted."""

    emissions: list[Emission]
    rows: int
    tokens: int
    preempted: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished sequence of `generate`."""

    token_ids: list[int]
    finish_reason: FinishReason
    error: str | None = None
    logprobs: list[Logprob] | None = None


@dataclass
class SchedulerCounts:
    """Since the start. cached_tokens / admitted_tokens is the prefix cache's hit rate."""

    preemptions: int = 0
    admitted_tokens: int = 0  # tokens that sequences had when they were admitted, the last of each left out
    cached_tokens: int = 0  # those of them whose K/V came from the prefix cache
    recomputed_tokens: int = 0  # computed once more, because preemption had taken their pages
    drafted_tokens: int = 0  # guesses that were computed
    accepted_tokens: int = 0  # those of them that held


@dataclass
class EngineStats(SchedulerCounts):
    """Counters since the start, the scheduler's among them."""

    steps: int = 0
    row_steps: int = 0  # rows that took part, summed over steps: row_steps / steps is the mean width
    computed_tokens: int = 0
    generated_tokens: int = 0
    busy_seconds: float = 0.0
    ran_out_of_memory: int = 0  # steps that did not happen for it
    waited_s: float = 0.0  # of the busy seconds, those spent waiting for a step to be done
    longest_step_s: float = 0.0  # while this process computed: one that is stopped or waits is at no step
