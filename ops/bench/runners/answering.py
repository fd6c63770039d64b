"""What every runner of a peer does: reads workloads from stdin, writes what came of them to stdout, a JSON line each.

    -> {"prompts": [[id, ...], ...], "max_tokens": [n, ...], "arrivals": [seconds, ...]}
    <- {"times": [[seconds, ...], ...], "tokens": [[id, ...], ...], "wall_s": seconds, "rows": mean rows}

Before all, {"ready": name, "version": ...}. Runs in the peer's own Python: the standard library alone is imported, and
nothing of this repository but this file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Stepped(Protocol):
    """A system that answers greedily, each request to its limit, whatever it would take for an end."""

    def add(self, id_: int, prompt: list[int], max_tokens: int) -> None: ...

    def step(self) -> dict[int, list[int]]:
        """Go on a little; the new tokens of each request that has some."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


def serve(name: str, load: Callable[[], tuple[Stepped, str]]) -> None:
    """Answer workloads until stdin ends. load: makes the system, and says its version.

    What libraries print goes to stderr. Ends the process at once, as some of them would not let it.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    system, version = load()
    _say(out, {"ready": name, "version": version})
    base = 0
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            _say(out, _run(system, base, asked["prompts"], asked["max_tokens"], asked["arrivals"]))
            base += len(asked["prompts"])
    finally:
        system.close()
    os._exit(0)


def _run(
    system: Stepped, base: int, prompts: list[list[int]], limits: list[int], arrivals: list[float]
) -> dict[str, Any]:
    """One workload; ids begin at `base`, so that none comes twice."""
    tokens: list[list[int]] = [[] for _ in prompts]
    times: list[list[float]] = [[] for _ in prompts]
    began, coming, here, steps, row_steps = time.perf_counter(), 0, set[int](), 0, 0
    now = 0.0
    while coming < len(prompts) or here:
        now = time.perf_counter() - began
        while coming < len(prompts) and arrivals[coming] <= now:
            system.add(base + coming, prompts[coming], limits[coming])
            here.add(coming)
            coming += 1
        if not here:
            time.sleep(max(0.0, arrivals[coming] - now))  # until the next one comes
            continue
        new = system.step()
        now = time.perf_counter() - began
        steps, row_steps = steps + bool(new), row_steps + len(new)
        for id_, ids in new.items():
            at = id_ - base
            tokens[at] += ids
            times[at] += [now] * len(ids)
            if len(tokens[at]) >= limits[at]:
                here.discard(at)
    return {"times": times, "tokens": tokens, "wall_s": now, "rows": row_steps / max(1, steps)}


def _say(out: Any, value: dict[str, Any]) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()
