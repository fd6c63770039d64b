"""A run over a workload in numbers, and the medians of several."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

import numpy as np

from ops.bench.systems import Run


@dataclass(frozen=True)
class Figures:
    """A run in numbers, or the medians of several. First token: since the start. Gap: between two tokens of a row."""

    wall_s: float
    output_tokens: float
    tokens_per_s: float
    mean_rows: float
    first_token_p50_ms: float
    first_token_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    others_cores: float

    @classmethod
    def of(cls, run: Run) -> Figures:
        """The figures of one run."""
        output_tokens = sum(map(len, run.token_ids))
        first = [1000 * times[0] for times in run.times]
        gaps = [1000 * (after - before) for times in run.times for before, after in pairwise(times)] or [0.0]
        return cls(
            wall_s=run.wall_s,
            output_tokens=output_tokens,
            tokens_per_s=output_tokens / run.wall_s,
            mean_rows=run.mean_rows,
            first_token_p50_ms=float(np.percentile(first, 50)),
            first_token_p99_ms=float(np.percentile(first, 99)),
            gap_p50_ms=float(np.percentile(gaps, 50)),
            gap_p99_ms=float(np.percentile(gaps, 99)),
            others_cores=run.others_cores,
        )

    @classmethod
    def median(cls, several: Sequence[Figures]) -> Figures:
        """Each figure's own median."""
        return cls(*(statistics.median(getattr(one, field.name) for one in several) for field in fields(cls)))

    def plain(self) -> dict[str, float]:
        """For JSON, without digits that would not repeat."""
        return {name: round(value, 3) for name, value in asdict(self).items()}
