"""The figures of a demo run, and how they read. Knows what was measured, not how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ops.demo.static import StaticRun
from ops.demo.traffic import Followed
from producer.keys import LANES, Lane


@dataclass(frozen=True)
class Continuous:
    """What the worker did, from the first submit to the last end. `mean_rows`: by the worker's own counters."""

    jobs: Sequence[Followed]
    seconds: float
    mean_rows: float
    waves: int
    display_cpu: float
    """Share of one core that this process took."""

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(job.tokens for job in self.jobs)

    @property
    def failed(self) -> list[Followed]:
        """Jobs that ended without an answer."""
        return [job for job in self.jobs if job.ended is None or job.ended.reason not in ("stop", "length")]

    def spans(self, lane: Lane) -> list[tuple[float, float]]:
        """From first token to end of each job of `lane`, in seconds since the first job was claimed."""
        zero = min((job.claimed_at for job in self.jobs if job.claimed_at), default=0.0)
        return [
            (
                job.claimed_at - zero + job.timings.first_token_s - job.timings.queued_s,
                job.claimed_at - zero + job.timings.total_s - job.timings.queued_s,
            )
            for job in self.jobs
            if job.asked.job.lane == lane and job.timings is not None and job.timings.first_token_s is not None
        ]


def summary_lines(rows: int, run: Continuous, static: StaticRun) -> list[str]:
    """The summary, line by line."""
    pairs = [
        ("jobs", f"{len(run.jobs):,}", f"{static.jobs:,}"),
        ("tokens", f"{run.tokens:,}", f"{static.tokens:,}"),
        ("seconds", f"{run.seconds:.1f}", f"{static.seconds:.1f}"),
        ("tokens/s", f"{run.tokens / run.seconds:,.0f}", f"{static.tokens / static.seconds:,.0f}"),
        (f"mean rows in use, of {rows}", f"{run.mean_rows:.1f}", f"{static.mean_rows:.1f}"),
    ]
    ratio = run.tokens / run.seconds / (static.tokens / static.seconds)
    return [
        f"  {'':26} {'continuous':>12} {'static batches':>16}",
        *(f"  {name:26} {continuous:>12} {static_:>16}" for name, continuous, static_ in pairs),
        "",
        f"  continuous / static: {ratio:.1f} times the tokens/s",
        f"  static: the first {static.jobs:,} of these jobs, {rows} at a time, each batch until its last has ended;",
        "  by the same engine, with no queue, streams or display beside it",
        "",
        *_first_token_lines(run.jobs),
        "",
        _exact_line(run.jobs),
        f"  submitted in {run.waves} waves, as many as the time held at full speed; nothing was slowed down",
        f"  this display took {100 * run.display_cpu:.0f} % of one core",
    ]


def _first_token_lines(jobs: Sequence[Followed]) -> list[str]:
    lines = [
        f"  {'':33} {'from submit':>21} {'from its claim':>21}",
        f"  {'time to first token':26} {'jobs':>6} {'p50':>10} {'p99':>10} {'p50':>10} {'p99':>10}",
    ]
    for lane in (*LANES, "all"):
        timings = [j.timings for j in jobs if j.timings is not None and lane in ("all", j.asked.job.lane)]
        whole = [t.first_token_s for t in timings if t.first_token_s is not None]
        claimed = [t.first_token_s - t.queued_s for t in timings if t.first_token_s is not None]
        if whole:
            figures = [_seconds(times, percent) for times in (whole, claimed) for percent in (50, 99)]
            lines.append(f"    {lane:24} {len(whole):6,} " + "".join(f"{figure:>11}" for figure in figures))
    return lines


def _exact_line(jobs: Sequence[Followed]) -> str:
    exact = sum(job.exact for job in jobs)
    shortest, longest = min(job.tokens for job in jobs), max(job.tokens for job in jobs)
    return (
        f"  answers: {exact:,} of {len(jobs):,} exactly right, to the character ({100 * exact / len(jobs):.1f} %); "
        f"{shortest} to {longest} tokens long"
    )


def _seconds(values: Iterable[float], percent: int) -> str:
    """The percentile, nearest rank."""
    ordered = sorted(values)
    value = ordered[min(len(ordered) - 1, -(-percent * len(ordered) // 100) - 1 if percent else 0)]
    return f"{value:7.2f} s" if value >= 0.1 else f"{1000 * value:6.0f} ms"
