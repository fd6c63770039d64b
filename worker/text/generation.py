"""What config.json and generation_config.json say about ids and default values. Parsed JSON in, checked values out."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

from worker.text.files import ModelFilesInvalid

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a job gets that says nothing else: generation_config.json's values, else those that change nothing."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None


def vocab_size(config: Config) -> int:
    """The number of ids the model knows. Raises ModelFilesInvalid where config.json doesn't say."""
    size = config.get("vocab_size")
    if type(size) is not int or size < 1:
        raise ModelFilesInvalid(f"config.json: vocab_size must be a positive whole number, got {size!r}")
    return size


def end_ids(generation: Config, config: Config, of_tokenizer: int | None) -> frozenset[int]:
    """The ids that end an output: the first that says, of both files and the tokenizer. Raises ModelFilesInvalid."""
    for ids in (generation.get("eos_token_id"), config.get("eos_token_id"), of_tokenizer):
        if ids is not None:
            listed = ids if isinstance(ids, list) else [ids]
            if not all(type(i) is int for i in listed):
                raise ModelFilesInvalid(f"eos_token_id must be a whole number or a list of them, got {ids!r}")
            return frozenset(listed)
    return frozenset()


def generation_defaults(generation: Config) -> GenerationDefaults:
    """The defaults; greedy where it says `"do_sample": false`. Raises ModelFilesInvalid for a value out of range."""
    greedy = generation.get("do_sample") is False
    top_k, max_tokens = _number(generation, "top_k", 0, math.inf), _number(generation, "max_new_tokens", 1, math.inf)
    temperature = _number(generation, "temperature", 0, sys.float_info.max)
    top_p, min_p = _number(generation, "top_p", math.ulp(0), 1), _number(generation, "min_p", 0, 1)
    repetition = _number(generation, "repetition_penalty", 0.01, 2)
    return GenerationDefaults(
        temperature=0.0 if greedy else 1.0 if temperature is None else temperature,
        top_k=0 if top_k is None else int(top_k),
        top_p=1.0 if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=1.0 if repetition is None else repetition,
        max_tokens=None if max_tokens is None else int(max_tokens),
    )


def _number(generation: Config, key: str, low: float, high: float) -> float | None:
    value = generation.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ModelFilesInvalid(
            f"generation_config.json: {key} must be a number from {low:g} to {high:g}, got {value!r}"
        )
    return float(value)
