"""What answers the requests of a workload: this engine, continuously or in static batches; and what a run brings.

A peer is a file of its own with a class like `OnEngine`: a name, and `run`.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ops.bench.machine import Others
from ops.bench.report import BenchError
from ops.bench.workload import Request
from worker.engine import Engine, SequenceParams


class Wrong(BenchError):
    """A system did not answer as it must: what came, against what was expected. Its time would mean nothing."""


class Step(NamedTuple):
    """A step of the engine: seconds it took, rows that took part, tokens it computed."""

    seconds: float
    rows: int
    tokens: int


@dataclass(frozen=True)
class Run:
    """One run over a workload. Per request, in order: its output ids and when each came, in seconds since the start."""

    token_ids: list[list[int]]
    times: list[list[float]]
    wall_s: float
    mean_rows: float  # rows that still had something to do, averaged over the steps
    others_cores: float  # CPU time of other processes meanwhile
    steps: list[Step] = field(default_factory=list)  # where the system tells them


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

    def run(self, requests: list[Request], arrivals: Sequence[float] | None = None) -> Run:
        """arrivals: when each request comes, in seconds, ascending; all at 0 by default.

        Raises Wrong if the engine fails one.
        """
        engine, stats = self._engine, self._engine.stats
        token_ids: list[list[int]] = [[] for _ in requests]
        times: list[list[float]] = [[] for _ in requests]
        steps: list[Step] = []
        num_steps, row_steps = stats.steps, stats.row_steps
        upcoming = deque(zip(arrivals or [0.0] * len(requests), range(len(requests)), strict=True))
        engine.forget_prefixes()  # of the same requests, a run before
        gc.collect()
        others, began = Others(), time.perf_counter()
        now = 0.0
        while upcoming or engine.has_work:
            self._let_in(requests, upcoming, time.perf_counter() - began)
            if not engine.has_work:
                time.sleep(max(0.0, upcoming[0][0] - (time.perf_counter() - began)))  # until the next one comes
                continue
            before = time.perf_counter() - began
            output = engine.step()
            now = time.perf_counter() - began
            steps.append(Step(now - before, output.rows, output.tokens))
            for emission in output.emissions:
                if emission.error is not None:
                    raise Wrong(f"{self.name}: request {emission.id} failed: {emission.error}")
                given, enough = emission.token_ids, requests[emission.id].ends_after
                if enough is not None:
                    given = given[: enough - len(token_ids[emission.id])]  # drafts that held may go beyond
                token_ids[emission.id] += given
                times[emission.id] += [now] * len(given)
                if len(token_ids[emission.id]) == enough:
                    engine.cancel(emission.id)
        wall_s = time.perf_counter() - began
        mean_rows = (stats.row_steps - row_steps) / (stats.steps - num_steps)
        return Run(token_ids, times, wall_s, mean_rows, others.cores(), steps)

    def _let_in(self, requests: list[Request], upcoming: deque[tuple[float, int]], now: float) -> None:
        """Queue what has come by `now`; where batches are static, one batch of it, once the last one has ended."""
        if self._batch is not None and self._engine.has_work:
            return
        room = self._batch or len(upcoming)
        while upcoming and room and upcoming[0][0] <= now:
            _, index = upcoming.popleft()
            request, room = requests[index], room - 1
            params = SequenceParams(max_tokens=request.max_tokens, stop_ids=request.stop_ids)
            self._engine.add(index, request.prompt, params)
