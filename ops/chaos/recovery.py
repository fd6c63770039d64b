"""How long a killed worker's jobs waited: for a new owner, by their histories; for their next token, by their readers.

Goes in: the kills, and for each job its history and what its reader saw. Comes out: `Recovery` samples. A job that
ended before it had another owner gives none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ops.chaos.audit import InRedis, Seen
from ops.chaos.monkey import Kill


@dataclass(frozen=True)
class Recovery:
    """One job of a killed worker, in seconds from the kill. `watched`: nothing else went on."""

    job: str
    watched: bool
    owner_s: float
    token_s: float | None


def recoveries(kills: Iterable[Kill], found: Mapping[str, InRedis], seen: Mapping[str, Seen]) -> list[Recovery]:
    """A sample for each job that was with a worker when it was killed and got a new owner."""
    samples = []
    for kill in kills:
        for job in kill.jobs:
            there = found.get(job)
            if there is None or there.status is None:
                continue
            claims = [h.at for h in there.status.history if h.what.startswith("claimed by") and h.at > kill.at]
            if claims:
                samples.append(
                    Recovery(job, kill.watched, claims[0] - kill.at, _token_s(seen[job], kill.at, claims[0]))
                )
    return samples


def _token_s(seen: Seen, killed_at: float, claimed_at: float) -> float | None:
    arrived = next((at for at in seen.arrivals if at >= claimed_at), None)
    if arrived is None or any(left < arrived and killed_at < back for left, back in seen.away):
        return None
    return arrived - killed_at


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of all do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
