"""A real worker for tests: `python -m worker` on the demo model, with its log and whatever may happen to a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from ops.redis_server import ending_with_us

ROOT = Path(__file__).parent.parent.parent
DEMO_MODEL = ROOT / "ops" / "demo" / "model"

FROM_WITHIN = Path(__file__).parent / "from_within"  # what makes an engine slow

READY_WITHIN_S = 120.0  # four seconds on two idle cores, most of it imports; a busy machine takes many times that
STOPS_WITHIN_S = 60.0
SLOW_TOKEN_S = 0.02  # of a slow worker: a job of 600 tokens takes 12 s
COMMAND = (sys.executable, "-m", "worker")

# One thread computes this small model as fast as two do, and leaves a core to Redis, the test and a second worker.
FLAGS = ("--threads", "1", "--log-format", "json")


class WorkerProcess:
    """One `python -m worker`. What it logs goes to `log_file`, one JSON object a line."""

    def __init__(self, redis_url: str, log_file: Path, *flags: str, model: Path = DEMO_MODEL) -> None:
        """Start it; returns at once. A flag given here comes after FLAGS and so counts."""
        self._log_file = log_file
        self._slow_file = log_file.with_suffix(".slow")
        path = os.pathsep.join(filter(None, (str(FROM_WITHIN), os.environ.get("PYTHONPATH"))))
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                ending_with_us(*COMMAND, "--model", str(model), "--redis", redis_url, *FLAGS, *flags),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "SLOW": str(self._slow_file)},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def engine_pid(self) -> int:
        """The process id of its engine."""
        (child,) = psutil.Process(self.pid).children()
        return child.pid

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self._log_file.read_text(errors="replace")

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that report `event`."""
        lines = []
        for line in self.log.splitlines():
            with suppress(ValueError):  # not JSON, or not yet a whole line
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event") == event:
                    lines.append(entry)
        return lines

    @property
    def name(self) -> str:
        """The consumer's name: what `status` and a started event call it. Once it is ready."""
        consumer: str = self.wait_for("worker_ready")["consumer"]
        return consumer

    def wait_for(self, event: str, already: int = 0) -> dict[str, Any]:
        """The line that reports `event` for the first time, or after `already` times, as soon as it is there."""
        deadline = time.monotonic() + READY_WITHIN_S
        while len(lines := self.said(event)) <= already:
            assert self.is_running, f"the worker ended before it said {event}:\n{self.log}"
            assert time.monotonic() < deadline, f"within {READY_WITHIN_S:g} s it never said {event}:\n{self.log}"
            time.sleep(0.01)
        return lines[already]

    def wait_ready(self) -> WorkerProcess:
        """Itself, once it takes jobs."""
        self.wait_for("worker_ready")
        return self

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @contextmanager
    def slow(self, token_s: float = SLOW_TOKEN_S) -> Iterator[None]:
        """Within, each token of a job takes so many seconds, so that on any machine a long job does not come to its
        end; from then on its engine is as fast as it is."""
        ready = self._slow_file.with_suffix(".ready")  # never half a number
        ready.write_text(f"{token_s}")
        ready.rename(self._slow_file)
        try:
            yield
        finally:
            self._slow_file.unlink()

    def exit_code(self, timeout_s: float = STOPS_WITHIN_S) -> int:
        """How it ended, once it has."""
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM, as Docker and Kubernetes stop it; the exit code."""
        self.signal(signal.SIGTERM)
        return self.exit_code()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """At the end of a test: a worker that still runs is stopped, and has to end well."""
        if not self.is_running:
            return
        self.signal(signal.SIGCONT)
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"the worker did not stop within {STOPS_WITHIN_S:g} s of SIGTERM") from None
        assert code == 0, f"the worker stopped with exit code {code}"
