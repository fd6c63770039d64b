"""Prompts that come alone: how long each waits for its first token, against what arithmetic allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from ops.bench.device import Ceilings
from ops.bench.kernel_cases import FORMS, Model
from worker.engine import Engine, SequenceParams

TIMES = 5


def prompts(engine: Engine, model: Model, ceilings: Ceilings, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Milliseconds to the first token of prompts of each length, in as many steps as the engine takes: the median."""
    drawn = Random(1)
    for length in lengths:
        took = []
        for at in range(1 + TIMES):
            engine.add(at, [drawn.randrange(model.vocab) for _ in range(length)], SequenceParams(1))
            began = time.perf_counter()
            while engine.has_work:
                engine.step()
            took.append(time.perf_counter() - began)
        seconds = statistics.median(took[1:])
        floor = ceilings.floor_s(*model.prompt(length, FORMS[engine.config.weights]))
        yield {
            "prompt": length,
            "ms": seconds * 1e3,
            "floor_ms": floor * 1e3,
            "of_floor": floor / seconds,
            "tokens_per_s": length / seconds,
        }
