"""A sequence's tokens while the engine has them. Lengths are derived, so no second copy can disagree."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from itertools import chain

from worker.engine.speculation import Lookup

MOST_LOGPROBS = 20
"""Alternatives whose log-probabilities are told for each token."""

_FP32_MAX = 3.4e38


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
    seed                    64 bits; with the offset and the token it gives the noise, so a draw can be made again
                            anywhere
    stop_ids                end-of-sequence and stop ids; the one that ends the sequence is its last output token; ids
                            outside the vocabulary never come and do no harm
    repetition_penalty      logits above 0 of tokens in prompt or output are divided by it, others multiplied; 1: off
    frequency_penalty       taken off a logit as often as the output has the token; presence_penalty: once if it has it
    logit_bias              (token, what is added to its logit)
    allowed_token_ids       nothing else is drawn; None: anything is
    bad_words               runs of ids: the last of one is never drawn where the output ends with those before it
    logprobs                tell each token's log-probability, and those of so many of the likeliest; None: don't
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None

    @property
    def penalises(self) -> bool:
        """Whether what was said before changes the logits."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def adjusts(self) -> bool:
        """Whether it is drawn from other logits than the model's."""
        return bool(self.penalises or self.logit_bias or self.allowed_token_ids is not None or self.bad_words)

    @property
    def is_redrawn(self) -> bool:
        """Whether its tokens are drawn apart from the others' (adjustments.py): from logits that are adjusted, or where
        those that the model gave are still to be read when stop ids have been barred."""
        return self.adjusts or (self.logprobs is not None and self.min_tokens > 0 and bool(self.stop_ids))


def refuse_unservable(
    prompt: Items[int], params: SequenceParams, output: Items[int], *, vocab_size: int, max_len: int
) -> None:
    """Raise Unservable for what an engine of that vocabulary and length (tokens) can never run."""

    def expect(fine: bool, name: str, expected: str) -> None:
        if not fine:
            raise Unservable(name, f"must be {expected}; got {getattr(params, name)!r}")

    if not prompt:
        raise Unservable("prompt", "is empty; give at least one token")
    bad = next((t for t in (*prompt, *output) if not 0 <= t < vocab_size), None)
    if bad is not None:
        raise Unservable("prompt_token_ids", f"token id {bad} is outside the vocabulary (0 to {vocab_size - 1})")
    expect(params.max_tokens >= 1, "max_tokens", "at least 1")
    expect(0 <= params.min_tokens <= params.max_tokens, "min_tokens", f"from 0 to max_tokens ({params.max_tokens})")
    expect(0 <= params.temperature <= _FP32_MAX, "temperature", "a number from 0 to 3.4e38")
    expect(0 <= params.top_k < 1 << 63, "top_k", "0 (off) or the number of tokens to choose from")
    expect(0 < params.top_p <= 1, "top_p", "above 0 and at most 1")
    expect(0 <= params.min_p <= 1, "min_p", "from 0 to 1")
    expect(-(1 << 63) <= params.seed < 1 << 63, "seed", "a whole number of 64 bits")
    if params.min_tokens and params.stop_ids.issuperset(range(vocab_size)):
        raise Unservable("stop_ids", "bar the whole vocabulary before min_tokens; leave some out")
    if params.adjusts or params.logprobs is not None:
        _refuse_adjustments(params, vocab_size)
    if len(output) >= params.max_tokens:
        raise Unservable("max_tokens", f"{len(output)} output tokens are there already of {params.max_tokens}")
    whole = len(prompt) + params.max_tokens
    if whole > max_len:
        raise Unservable(
            "max_tokens",
            f"prompt ({len(prompt)}) and max_tokens ({params.max_tokens}) are {whole} tokens; "
            f"this worker takes {max_len} (the model's length or its page pool, whichever is less)",
        )


def _refuse_adjustments(params: SequenceParams, vocab_size: int) -> None:
    """refuse_unservable, of what few sequences ask for."""
    numbers = {"repetition_penalty": (0.01, 2.0), "frequency_penalty": (-2.0, 2.0), "presence_penalty": (-2.0, 2.0)}
    for name, (least, most) in numbers.items():
        value = getattr(params, name)
        if not least <= value <= most:
            raise Unservable(name, f"must be from {least:g} to {most:g}; got {value!r}")
    if params.logprobs is not None and not 0 <= params.logprobs <= MOST_LOGPROBS:
        raise Unservable("logprobs", f"must be from 0 to {MOST_LOGPROBS}; got {params.logprobs!r}")
    given: dict[str, Iterable[int]] = {
        "logit_bias": [token for token, _ in params.logit_bias],
        "allowed_token_ids": params.allowed_token_ids or (),
        "bad_words": chain.from_iterable(params.bad_words),
    }
    for name, ids in given.items():
        bad = next((token for token in ids if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise Unservable(name, f"token id {bad} is outside the vocabulary (0 to {vocab_size - 1})")
    if len(dict(params.logit_bias)) != len(params.logit_bias):
        raise Unservable("logit_bias", "names a token twice; give each one value")
    if not all(params.bad_words):
        raise Unservable("bad_words", "has a word without tokens; leave it out")
    barred = {word[0] for word in params.bad_words if len(word) == 1}
    barred |= params.stop_ids if params.min_tokens else frozenset()
    if barred.issuperset(range(vocab_size) if params.allowed_token_ids is None else params.allowed_token_ids):
        raise Unservable(
            "allowed_token_ids",
            "are all ruled out by bad_words, or by stop ids before min_tokens; allow some that are not",
        )


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
    keys: list[bytes] = field(default_factory=list)  # of its first full pages, as far as anyone asked
    entered: int = 0  # its first pages that are done with the prefix cache: found in it, or offered to it
    cached: int | None = None  # tokens of the prompt found in it at the first admission; None before
    reached: int = 0  # tokens computed before the last preemption
    pending: int = 0  # tokens drawn on the device that have not been read yet: 0, or 1 where steps run ahead
    wants_lookup: bool = False  # as speculation decided when it came
    lookup: Lookup | None = None  # guesses what comes next; from the first token drawn here on

    @property
    def num_tokens(self) -> int:
        """Prompt and output together, with what is drawn but not read."""
        return len(self.prompt) + len(self.output) + self.pending

    @property
    def num_output(self) -> int:
        """Output tokens, with what is drawn but not read."""
        return len(self.output) + self.pending

    @property
    def awaits_its_end(self) -> bool:
        """Whether a token that is not read yet is the last it may have: no step does anything for it until then."""
        return self.pending > 0 and len(self.output) + self.pending >= self.params.max_tokens

    @property
    def remaining(self) -> int:
        """Tokens whose K/V is still to be computed: 1 while decoding."""
        return len(self.prompt) + len(self.output) + self.pending - self.computed

    def tokens(self, start: int, stop: int) -> Items[int]:
        """Tokens [start, stop), of the prompt and then of the output."""
        n = len(self.prompt)
        if stop <= n:
            return self.prompt[start:stop]
        if start >= n:
            return self.output[start - n : stop - n]
        return [*self.prompt[start:], *self.output[: stop - n]]

    @property
    def rank(self) -> tuple[int, int]:
        """Who runs first: by priority, then by arrival."""
        return self.priority, self.arrival
