"""What a reader feels of a run: time to first token, gaps between tokens and the whole job, each from its arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ops.bench.systems import Run

CLASSES = {"short": 32, "medium": 128, "long": None}
"""Jobs by their output tokens: up to 32, up to 128, more."""


@dataclass
class Latencies:
    """In milliseconds, of one run or of several; `whole` by length class."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    whole: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CLASSES})

    def add(self, run: Run, arrivals: Sequence[float]) -> None:
        """Those of a run whose requests came at `arrivals`, in seconds of its clock."""
        for times, arrival in zip(run.times, arrivals, strict=True):
            self.first.append(1000 * (times[0] - arrival))
            self.gaps += [1000 * (after - before) for before, after in pairwise(times)]
            self.whole[length_class(len(times))].append(1000 * (times[-1] - arrival))

    def plain(self) -> dict[str, float]:
        """p50 and p99 of each, for JSON; a class without jobs is left out."""
        named = {"first_token": self.first, "gap": self.gaps, **{f"whole_{n}": v for n, v in self.whole.items()}}
        return {
            f"{name}_p{share}_ms": round(percentile(values, share), 2)
            for name, values in named.items()
            for share in (50, 99)
            if values
        }


def percentile(values: Sequence[float], share: float) -> float:
    """`share` per cent of the values are not above it."""
    return float(np.percentile(values, share))


def length_class(output_tokens: int) -> str:
    """The first class that it is not too long for."""
    return next(name for name, most in CLASSES.items() if most is None or output_tokens <= most)


def distribution(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """(values ascending, share of all that are not above each), at most 500 points: a line of a chart."""
    ordered = sorted(values)
    kept = sorted({round(at * (len(ordered) - 1) / 499) for at in range(500)}) if ordered else []
    return [ordered[at] for at in kept], [(at + 1) / len(ordered) for at in kept]
