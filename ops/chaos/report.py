"""A run's report as a table for people and as plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ops.bench.machine import Machine
from ops.chaos.audit import KINDS
from ops.chaos.recovery import percentile
from ops.chaos.run import Report

_MEANS = {
    "lost": "accepted, and not answered",
    "unshown": "lost with the latest second, and the reader not told",
    "two_ends": "two ends",
    "gap": "gaps",
    "repeat": "repeats",
    "wrong": "wrong answers",
    "dead": "dead-lettered",
    "reader": "readers who saw something else",
    "pending": "lanes with entries left",
    "leak": "keys without TTL or owner",
    "takeover": "takeovers by the outage",
    "worker": "processes that died by themselves",
}
_SHOWN = 20
_TURN_S = 0.5  # the bound knows nothing of how long a process waits for a core


def recovery(report: Report) -> dict[str, Any]:
    """p50, p99 and the most of each wait, all kills and those that were watched, beside the bound; in seconds."""
    lease_s = report.options.lease_s
    figures: dict[str, Any] = {"bound_s": round(lease_s + 1.2 * lease_s / 3, 2)}
    for name, samples in (
        ("watched", [one for one in report.recoveries if one.watched]),
        ("all", report.recoveries),
    ):
        for what, values in (
            ("owner", [one.owner_s for one in samples]),
            ("token", [one.token_s for one in samples if one.token_s is not None]),
        ):
            of = {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "max": max(values, default=None)}
            figures[f"{name}_{what}_s"] = {
                "n": len(values),
                **{key: None if value is None else round(value, 2) for key, value in of.items()},
            }
    return figures


def in_time(report: Report) -> bool:
    """Whether the jobs of all watched kills had a new owner within the bound, and a busy machine's turn."""
    most: float | None = recovery(report)["watched_owner_s"]["max"]
    return most is None or most <= recovery(report)["bound_s"] + _TURN_S


def plain(report: Report) -> dict[str, Any]:
    """All of it."""
    verdict = report.verdict
    return {
        "passed": report.passed and in_time(report),
        "options": {name: value for name, value in asdict(report.options).items() if name != "directory"},
        "machine": asdict(Machine.here()),
        "seconds": round(report.seconds, 1),
        "accepted": report.accepted,
        "ended": verdict.reasons,
        "tokens": verdict.tokens,
        "found": {kind: verdict.count(kind) for kind in KINDS},
        "lost_and_shown": verdict.lost_and_shown,
        "ends_taken_back": verdict.ends_taken_back,
        "resyncs": verdict.resyncs,
        "recovery": recovery(report),
        "refused_too_late": len(report.refused),
        "mischief": report.mischief,
        "untried": report.untried,
        "worker_exits": {str(code): times for code, times in sorted(report.exits.items())},
        "findings": [asdict(finding) for finding in verdict.findings],
    }


def table(report: Report) -> str:
    """What a person wants to know first."""
    verdict, figures = report.verdict, recovery(report)
    ended = ", ".join(f"{times} {reason}" for reason, times in sorted(verdict.reasons.items()))
    did = ", ".join(f"{times} x {kind}" for kind, times in sorted(report.mischief.items()))
    rows = [
        ("jobs accepted", f"{report.accepted:,} ({ended})"),
        ("tokens", f"{verdict.tokens:,} in {report.seconds:.0f} s"),
        ("mischief", did),
        *((_MEANS[kind], str(verdict.count(kind))) for kind in KINDS),
        ("lost with Redis' last second, and shown", str(verdict.lost_and_shown)),
        ("ends taken back by the same", str(verdict.ends_taken_back)),
        ("resyncs that readers were told", str(verdict.resyncs)),
        *(
            (f"killed worker's job, {name[:-2].replace('_', ': next ')}", _spread(figures[name]))
            for name in figures
            if name != "bound_s"
        ),
        ("the bound for a new owner", f"{figures['bound_s']} s"),
    ]
    width = max(len(row[0]) for row in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    shown = [f"{finding.kind}: {finding.job} {finding.what}" for finding in verdict.findings]
    lines += ["", *shown[:_SHOWN]] if shown else []
    lines += [f"... and {len(shown) - _SHOWN} more, in the JSON"] if len(shown) > _SHOWN else []
    lines += ["", "a watched kill was recovered from later than the bound"] if not in_time(report) else []
    passed = report.passed and in_time(report)
    how = "passed" if passed else f"FAILED; seed {report.options.seed}, logs: {report.options.directory}"
    return "\n".join([*lines, "", how])


def _spread(figures: dict[str, Any]) -> str:
    if not figures["n"]:
        return "none"
    return f"p50 {figures['p50']} s, p99 {figures['p99']} s, most {figures['max']} s ({figures['n']} jobs)"
