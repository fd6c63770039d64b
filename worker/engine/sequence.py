"""One job's tokens while the engine has them. Lengths are derived, so no second copy can disagree."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto


class FinishReason(StrEnum):
    """Why a sequence ended by itself: a stop id or end-of-sequence id, its token limit, or a fault of its own."""

    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"


class Unservable(ValueError):
    """The sequence can never run here: which field, got against expected, what to do. Nothing was queued."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class SequenceParams:
    """How a sequence is sampled and when it ends. All resolved: nothing is left to a default of the model here.

    max_tokens, min_tokens  output tokens; stop ids are barred before min_tokens
    temperature             0: the likeliest token; top_k 0, top_p 1.0 and min_p 0.0 are off
    seed                    with the offset and the token it gives the noise, so a draw can be made again anywhere
    stop_ids                end-of-sequence and stop ids; the one that ends the sequence is its last output token
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()


class State(Enum):
    """Where a sequence is. Preempted ones wait again."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt and output ids, and how far their K/V is computed. `computed` chases `num_tokens`; there are no phases."""

    id: int
    prompt: Items[int]
    params: SequenceParams
    priority: int  # lower runs first
    arrival: int  # order of arrival, unique
    output: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    row: int | None = None
    state: State = State.WAITING

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Tokens whose K/V is still to be computed: 1 while decoding."""
        return self.num_tokens - self.computed

    @property
    def rank(self) -> tuple[int, int]:
        """Who runs first: by priority, then by arrival."""
        return self.priority, self.arrival
