"""What answers the requests of a workload: this engine, continuously or in static batches; and what a run brings.

A peer is a file of its own with a class like `OnEngine`: a name, and `run`.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Protocol

from ops.bench.machine import Others
from ops.bench.workload import Request
from worker.engine import Engine, SequenceParams


class Wrong(Exception):
    """A system did not answer as it must: what came, against what was expected. Its time would mean nothing."""


@dataclass(frozen=True)
class Run:
    """One run over a workload. Per request, in order: its output ids and when each came, in seconds since the start."""

    token_ids: list[list[int]]
    times: list[list[float]]
    wall_s: float
    mean_rows: float  # rows that still had something to do, averaged over the steps
    others_cores: float  # CPU time of other processes meanwhile


class System(Protocol):
    """Answers requests that are all there at the start, greedily."""

    @property
    def name(self) -> str: ...

    def run(self, requests: list[Request]) -> Run: ...


class OnEngine:
    """This engine. `batch` None: all requests are queued at once, and a row is filled as soon as one is free.

    A number: so many are added, run until the last has ended, then the next. A row that has ended costs nothing until
    then; padding it to the longest, as simpler servers do, would cost more.
    """

    def __init__(self, engine: Engine, batch: int | None = None) -> None:
        self._engine, self._batch = engine, batch
        self.name = "slipstream" if batch is None else f"slipstream static {batch}"

    def run(self, requests: list[Request]) -> Run:
        """Raises Wrong if the engine fails one."""
        engine, stats = self._engine, self._engine.stats
        params = [SequenceParams(max_tokens=r.max_tokens, stop_ids=r.stop_ids) for r in requests]
        token_ids: list[list[int]] = [[] for _ in requests]
        times: list[list[float]] = [[] for _ in requests]
        steps, row_steps = stats.steps, stats.row_steps
        engine.forget_prefixes()  # of the same requests, a run before
        gc.collect()
        others, began = Others(), time.perf_counter()
        size = self._batch or len(requests)
        for first in range(0, len(requests), size):
            for index, request in enumerate(requests[first : first + size], first):
                engine.add(index, request.prompt, params[index])
            while engine.has_work:
                emissions = engine.step().emissions
                now = time.perf_counter() - began
                for emission in emissions:
                    if emission.error is not None:
                        raise Wrong(f"{self.name}: request {emission.id} failed: {emission.error}")
                    token_ids[emission.id] += emission.token_ids
                    times[emission.id] += [now] * len(emission.token_ids)
        wall_s = time.perf_counter() - began
        mean_rows = (stats.row_steps - row_steps) / (stats.steps - steps)
        return Run(token_ids, times, wall_s, mean_rows, others.cores())
