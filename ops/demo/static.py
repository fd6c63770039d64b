"""The demo's jobs in static batches, for comparison: rows are filled, run until the last answer ends, and filled again.

The same engine with the same settings, driven by hand: no queue, no Redis and no reader take any of its time, and a row
that has ended costs nothing until its batch is over (padding to the longest, as simpler servers do, would cost more).

A program of its own, since the engine wants a process to itself: a JSON object {engine, seconds, jobs} comes in on
stdin, jobs as the fields of producer.Job; JSON lines go out, {seconds, jobs, rows} a few times a second, and a last one
with all that StaticRun holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ops.demo.servers import DemoFailed, EngineSettings, Program
from producer import Job

_TELL_EVERY_S = 0.1


@dataclass(frozen=True)
class StaticRun:
    """What came of it. `changes` are (seconds since the start, rows in use from then on)."""

    jobs: int
    tokens: int
    seconds: float
    mean_rows: float
    changes: list[tuple[float, int]]


class StaticBatches(Program):
    """That program. It imports what it needs as soon as it is made, and waits; `run` gives it the jobs."""

    def __init__(self) -> None:
        super().__init__("ops.demo.static", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(
        self, settings: EngineSettings, seconds: float, jobs: list[Job], tell: Callable[[float, int, int], None]
    ) -> StaticRun:
        """Run batch after batch of `jobs`, in order, until all are done or `seconds` have passed at a batch's end.

        `tell` gets seconds, finished jobs and rows in use while it runs. Once only. Raises DemoFailed if it fails.
        """
        wanted = {
            "engine": asdict(settings),
            "seconds": seconds,
            "jobs": [job.model_dump(mode="json", exclude_none=True) for job in jobs],
        }
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and says below how
            json.dump(wanted, stdin)
            stdin.close()
        for line in stdout:
            said = json.loads(line)
            if "changes" in said:
                return StaticRun(**said)
            tell(said["seconds"], said["jobs"], said["rows"])
        raise DemoFailed(f"the static batches ended with exit code {self.process.wait()}; why stands above")


class _Batches:
    """Static batches on one engine."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        from worker.engine import Engine  # torch comes with it
        from worker.jobs import decide
        from worker.text import TextModel

        self._rows, self._seconds = wanted["engine"]["max_rows"], wanted["seconds"]
        self._engine = Engine.from_pretrained(**wanted["engine"])
        text = TextModel.from_pretrained(wanted["engine"]["model"])
        jobs = [Job.model_validate(fields) for fields in wanted["jobs"]]
        self._resolved = [decide(job, text, "", self._engine.max_len) for job in jobs]  # as a worker does

    def run(self) -> Iterator[dict[str, Any]]:
        """Run them. Yields what stands in each line that goes out."""
        began, told, now, done = time.perf_counter(), 0.0, 0.0, 0
        changes: list[tuple[float, int]] = []
        while done < len(self._resolved) and now < self._seconds:
            done += self._fill(done)
            while self._engine.has_work:
                used = self._engine.step().rows
                if not changes or changes[-1][1] != used:
                    changes.append((now, used))
                now = time.perf_counter() - began
                if now - told > _TELL_EVERY_S:
                    told = now
                    yield {"seconds": now, "jobs": done - self._engine.num_running, "rows": used}
        stats = self._engine.stats
        mean_rows = stats.row_steps / stats.steps
        yield asdict(StaticRun(done, stats.generated_tokens, now, mean_rows, [*changes, (now, 0)]))

    def _fill(self, first: int) -> int:
        """Add a batch, from job `first` on; how many there are in it."""
        from worker.engine import SequenceParams

        batch = self._resolved[first : first + self._rows]
        for index, resolved in enumerate(batch, first):
            self._engine.add(index, resolved.prompt_ids, SequenceParams(**resolved.params))
        return len(batch)


def main() -> None:
    import worker.engine  # noqa: F401 (seconds, while nobody waits for us)

    said = sys.stdin.read()
    if not said:  # whoever started us has ended
        return
    for line in _Batches(json.loads(said)).run():
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
