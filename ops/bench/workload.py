"""The requests of a bench: prompts as ids, and when each output ends. The same for the same seed, on every machine.

`mixed_lengths` for a model that means nothing: lengths spread as those of real traffic do, outputs end at their limit.
`demo_jobs` for the demo's model: tasks it answers, ended by its own end token, whose answers can be checked.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ops.bench.models import VOCAB, num_parameters

_FIRST_PLAIN_ID = 300  # below are special tokens and single bytes


@dataclass(frozen=True)
class Request:
    """One prompt; its output ends at one of `stop_ids` or after max_tokens. `answer`: the right text, if there is.

    ends_after: so many output tokens are enough, as where a stop string is found; the engine does not know before.
    """

    prompt: list[int]
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    answer: str | None = None
    ends_after: int | None = None


@dataclass(frozen=True)
class Workload:
    """Requests that are all there at time 0, and the model that answers them."""

    name: str
    model: Path
    requests: list[Request]

    @property
    def fixed(self) -> bool:
        """Whether every output's length is known before."""
        return not any(request.stop_ids for request in self.requests)

    def describe(self) -> dict[str, Any]:
        """Model and lengths as plain values."""
        described = {
            "workload": self.name,
            "model": self.model.name,
            "parameters": num_parameters(self.model),
            "requests": len(self.requests),
            "prompt_tokens": _lengths([len(request.prompt) for request in self.requests]),
        }
        return described | (
            {"output_tokens": _lengths([request.max_tokens for request in self.requests])} if self.fixed else {}
        )


def mixed_lengths(count: int = 64, *, seed: int = 1, vocab: int = VOCAB) -> list[Request]:
    """Random prompts of 16 to 512 tokens and outputs of 8 to 512, lognormal: most short, most tokens in the long ones.

    The medians of the distributions are 128 and 64 tokens. A seed's lengths are the same for every vocabulary.
    """
    lengths, ids = Random(seed), Random(seed + 1000)
    requests = []
    for _ in range(count):
        prompt = _clamp(lengths.lognormvariate(4.852, 0.85), 16, 512)
        output = _clamp(lengths.lognormvariate(4.159, 1.1), 8, 512)
        requests.append(Request([ids.randrange(_FIRST_PLAIN_ID, vocab) for _ in range(prompt)], output))
    return requests


def uniform_lengths(count: int, most: int = 256, *, seed: int = 1) -> list[Request]:
    """Outputs of 8 to `most` tokens, each length as likely as any other; prompts of 16 to 128."""
    rng = Random(seed)
    return [Request(_prompt(rng, rng.randint(16, 128)), rng.randint(8, most)) for _ in range(count)]


def equal_lengths(count: int, output: int = 128, *, seed: int = 1) -> list[Request]:
    """Outputs of one length, after prompts of one length: what static batches are made for."""
    rng = Random(seed)
    return [Request(_prompt(rng, 64), output) for _ in range(count)]


def heavy_tailed(count: int, most: int = 512, *, seed: int = 1) -> list[Request]:
    """Outputs of 8 tokens to `most` whose tail is Pareto's with exponent 0.9; prompts of 16 to 128 tokens."""
    rng = Random(seed)
    return [
        Request(_prompt(rng, rng.randint(16, 128)), _clamp(8 * rng.paretovariate(0.9), 8, most)) for _ in range(count)
    ]


def shared_prefixes(count: int, prefixes: int, shared: int = 512, *, seed: int = 1) -> list[Request]:
    """Every prompt begins with one of a few prefixes of `shared` tokens, as with a system prompt, taking turns.

    16 to 128 tokens of its own follow; outputs are of 8 to 128.
    """
    rng = Random(seed)
    common = [_prompt(rng, shared) for _ in range(prefixes)]
    return [
        Request(common[at % prefixes] + _prompt(rng, rng.randint(16, 128)), rng.randint(8, 128)) for at in range(count)
    ]


def prompts_of(count: int, length: int, *, seed: int = 1) -> list[list[int]]:
    """Random prompts of one length, none like another."""
    rng = Random(seed)
    return [_prompt(rng, length) for _ in range(count)]


def poisson(count: int, rate: float, *, seed: int = 1) -> list[float]:
    """When `count` requests come, in seconds, ascending: `rate` a second on average, each independent of the others."""
    rng, at, arrivals = Random(seed), 0.0, list[float]()
    for _ in range(count):
        at += rng.expovariate(rate)
        arrivals.append(at)
    return arrivals


def demo_jobs(model: Path, count: int = 192, *, seed: int = 1, longest_answer: int | None = None) -> list[Request]:
    """Jobs as `make demo` draws them, each kind of task and answers from 2 to some 300 tokens; half come as chats.

    longest_answer: characters; longer ones are passed over.
    """
    from transformers import AutoTokenizer

    from ops.demo.evaluate import prompt_ids
    from ops.demo.supply import Supply

    tokenizer = AutoTokenizer.from_pretrained(model)
    supply, requests = Supply(seed), list[Request]()
    while len(requests) < count:
        (drawn,) = supply.take(1)
        answer, limit = drawn.example.answer, drawn.job.sampling.max_tokens
        assert limit is not None
        if longest_answer is None or len(answer) <= longest_answer:
            prompt = prompt_ids(tokenizer, drawn.example.prompt, chat=drawn.job.messages is not None)
            requests.append(Request(prompt, limit, frozenset({tokenizer.eos_token_id}), answer))
    return requests


def _prompt(rng: Random, length: int) -> list[int]:
    return [rng.randrange(_FIRST_PLAIN_ID, VOCAB) for _ in range(length)]


def _clamp(value: float, least: int, most: int) -> int:
    return min(most, max(least, int(value)))


def _lengths(lengths: list[int]) -> dict[str, float]:
    return {
        "sum": sum(lengths),
        "min": min(lengths),
        "median": statistics.median(lengths),
        "max": max(lengths),
    }
