"""The worker of the bench `queue`: the Redis half as it ships, an engine that computes nothing in the engine's place.

Prints "ready", waits for a line on stdin, then serves until SIGTERM. With `--trace FILE` it notes when each token was
made and when the flush that published it began, and writes that at its end: a JSON list of [job, offset after it, when
made, when published], in seconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from producer.connection import connect
from worker.engine_link import Emission, EngineLink
from worker.log import configure
from worker.loop import Worker
from worker.outbox import Outbox
from worker.settings import read_settings
from worker.text import TextModel

MAX_LEN = 1024
TOKENS = range(300, 500)  # ids that the demo's tokenizer has, each with a text of its own


class NoopEngine(EngineLink):
    """Speaks as the engine's process does: each step gives every row one more token, to its limit, at no cost.

    `step_s` None: a step has ended whenever one looks. Else one ends every `step_s`, and one at once for a sequence
    that finds nothing running. `every`: a row has a token in one step of so many, its first in the first.
    """

    def __init__(self, rows: int, step_s: float | None = None, every: int = 1) -> None:
        self._rows, self._step_s, self._every = rows, step_s, every
        self._left: dict[int, int] = {}  # tokens to come, by sequence; the first `rows` of them run
        self._began: dict[int, int] = {}  # in which step, by sequence
        self._steps = 0
        self.connection: Any = _Bell()
        self.made_at: dict[int, list[float]] = {}  # by sequence, a time a token
        if step_s is not None:
            threading.Thread(target=self._tick, args=(step_s,), daemon=True).start()

    def wait_ready(self) -> dict[str, Any]:
        return {"max_rows": self._rows, "max_len": MAX_LEN, "slower_because": None}

    def add(
        self, sequence_id: int, prompt: Sequence[int], output: Sequence[int], params: Mapping[str, Any], priority: int
    ) -> None:
        if self._step_s is None or not self._left:
            self.connection.ring()
        self._left[sequence_id] = params["max_tokens"] - len(output)
        self._began[sequence_id] = self._steps + 1

    def cancel(self, sequence_ids: Iterable[int]) -> None:
        for sequence_id in sequence_ids:
            self._left.pop(sequence_id, None)
            self._began.pop(sequence_id, None)

    def receive(self) -> tuple[Any, ...]:
        """The next step."""
        self._steps += 1
        running = [
            each for each in islice(self._left, self._rows) if not (self._steps - self._began[each]) % self._every
        ]
        token, now = TOKENS[self._steps % len(TOKENS)], time.monotonic()
        emissions: list[Emission] = []
        for sequence_id in running:
            self._left[sequence_id] -= 1
            self.made_at.setdefault(sequence_id, []).append(now)
            reason = None if self._left[sequence_id] else "length"
            emissions.append((sequence_id, [token], reason, None, 0, None))
            if reason:
                del self._left[sequence_id], self._began[sequence_id]
        if self._step_s is not None or not self._left:
            self.connection.hush()
        load = {"steps": self._steps, "rows": len(running), "longest_step_ms": 1000 * (self._step_s or 0)}
        return "step", emissions, load

    def close(self) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""

    def _tick(self, step_s: float) -> None:
        due = time.monotonic()
        while True:
            due += step_s
            time.sleep(max(0.0, due - time.monotonic()))  # the step that an engine would take
            if self._left:
                self.connection.ring()


class _Bell:
    """What EngineLink's connection is to the loop: readable while there is something to receive."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._rung = False
        self._lock = threading.Lock()  # the clock's thread rings while the loop hushes

    def fileno(self) -> int:
        return self._fd

    def poll(self) -> bool:
        return self._rung

    def ring(self) -> None:
        with self._lock:
            if not self._rung:
                self._rung = True
                os.eventfd_write(self._fd, 1)

    def hush(self) -> None:
        with self._lock:
            if self._rung:
                self._rung = False
                os.eventfd_read(self._fd)


def trace_flushes(engine: NoopEngine) -> list[tuple[str, int, float, float]]:
    """From now on, what each flush has published is noted in the list: job, offset after it, made at, flushed at."""
    notes: list[tuple[str, int, float, float]] = []
    flush = Outbox.flush

    def flush_and_note(outbox: Outbox) -> list[int]:
        began, before = time.monotonic(), [(job, job.published) for job in outbox.jobs.values()]
        lost = flush(outbox)
        for job, published in before:
            if job.published > published:
                # the oldest token of a flush has waited longest: its time counts
                notes.append((job.job_id, job.published, engine.made_at[job.sequence_id][published], began))
        return lost

    # the outbox as it ships has no place to look in from outside, and needs none but for this
    Outbox.flush = flush_and_note  # type: ignore[method-assign,assignment]
    return notes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.queue_worker")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--model", required=True, help="whose tokenizer it has")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--step-ms", type=float, help="of a step; none: as fast as the loop takes them")
    parser.add_argument("--every", type=int, default=1, help="steps from one token of a row to its next")
    parser.add_argument("--trace", type=Path)
    given = parser.parse_args()
    configure("json", "warning")
    settings = read_settings([f"--model={given.model}", f"--redis={given.redis}", f"--max-rows={given.rows}"])
    engine = NoopEngine(given.rows, given.step_ms and given.step_ms / 1000, given.every)
    notes = trace_flushes(engine) if given.trace else []
    text = TextModel.from_pretrained(given.model)
    worker = Worker(settings, connect(given.redis, timeout_s=2.0, resends=0), engine, text)
    print("ready", flush=True)
    sys.stdin.readline()
    code = worker.run()
    if given.trace:
        given.trace.write_text(json.dumps(notes))
    return code


if __name__ == "__main__":
    sys.exit(main())
