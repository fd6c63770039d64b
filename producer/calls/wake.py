"""How a client wakes itself out of a blocking read that many of its readers share."""

from __future__ import annotations

from producer.calls.script import Call, script

WAKE_TTL_S = 60.0
"""A wake has done its work within milliseconds; the rest is for a client that is stopped in between."""


def wake(wake_stream: str) -> Call[None]:
    """Add an entry to a client's own `Keys.wake(...)`, which that client reads along with the streams of jobs."""
    return Call(script("wake"), (wake_stream,), (round(WAKE_TTL_S * 1000),), lambda _: None)
