"""The workers of a chaos run and who starts them again: a slot always has a worker, or one that is on its way.

Each worker's log lies in a file of its own. What ends a worker without the monkey's doing is noted in `surprises`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ops.demo.servers import Program

DRAINED, ENGINE_LOST, NO_REDIS = 0, 3, 4
_STOPS_WITHIN_S = 60.0
_LOOKS_EVERY_S = 0.05


@dataclass(frozen=True)
class WorkerSettings:
    """What all workers have in common."""

    model: str
    lease_s: float
    max_rows: int


class Worker(Program):
    """One `python -m worker`, its log, and what was done to it."""

    def __init__(self, redis_url: str, log: Path, settings: WorkerSettings) -> None:
        self.log = log
        self.fate: set[int] = set()
        """Exit codes that are the monkey's doing."""
        self.paused = self.doomed = False
        """doomed: it was told, or made, to end."""
        self.consumer: str | None = None
        self.engine: psutil.Process | None = None
        flags: dict[str, Any] = {
            "model": settings.model,
            "redis": redis_url,
            "lease-s": settings.lease_s,
            "max-rows": settings.max_rows,
            "threads": 1,
            "drain-grace-s": 2,
            "log-format": "json",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        with log.open("w") as output:
            super().__init__("worker", "--deterministic", *words, stdout=output, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it takes jobs, or would if it were not paused."""
        if self.doomed or not self.is_running:
            return False
        if self.consumer is None and (said := self.said("worker_ready")):
            self.consumer = said[0]["consumer"]
            children = psutil.Process(self.pid).children()
            self.engine = children[0] if children else None
        return self.consumer is not None

    @property
    def is_starting(self) -> bool:
        """Whether it runs, was not told to end, and is not ready yet."""
        return self.is_running and not self.doomed and not self.is_ready

    def said(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that report `event`."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            if f'"{event}"' in line:
                with suppress(ValueError):
                    lines.append(json.loads(line))
        return [line for line in lines if line.get("event") == event]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals, code: int) -> None:
        """Send it the signal that ends it, with that exit code."""
        self.doomed = True
        self.fate.add(code)
        self.send(number)

    def resume(self) -> None:
        """Wake its engine and it, whatever paused them."""
        self.paused = False
        if self.engine is not None:
            with suppress(psutil.NoSuchProcess):
                self.engine.resume()
        self.send(signal.SIGCONT)


class Fleet:
    """As many workers as there are urls, one slot each."""

    def __init__(self, urls: Sequence[str], directory: Path, settings: WorkerSettings) -> None:
        """Start them; returns at once. Belongs to the thread that makes it: workers end with that."""
        self._urls, self._directory, self._settings = urls, directory, settings
        self.surprises: list[str] = []
        self.exits: dict[int, int] = {}
        self.started: list[Worker] = []
        self.slots = [self._start(slot) for slot in range(len(urls))]

    def _start(self, slot: int) -> Worker:
        log = self._directory / f"worker-{slot}-{len(self.started)}.log"
        worker = Worker(self._urls[slot], log, self._settings)
        self.started.append(worker)
        return worker

    @property
    def ready(self) -> list[Worker]:
        """Workers that take jobs now."""
        return [worker for worker in self.slots if worker.is_ready and not worker.paused]

    @property
    def all_ready(self) -> bool:
        return len(self.ready) == len(self.slots)

    def tend(self) -> None:
        """Start again what has ended."""
        for slot, worker in enumerate(self.slots):
            if not worker.is_running:
                self._note_exit(worker)
                self.slots[slot] = self._start(slot)

    def stop(self) -> None:
        """SIGTERM to all, and wait: they have to end well, and their engines with them.

        One that is starting is let come so far first: while it imports, a signal ends it as it would any process.
        """
        deadline = time.monotonic() + _STOPS_WITHIN_S
        for worker in self.slots:
            worker.resume()
            while worker.is_starting and time.monotonic() < deadline:
                time.sleep(_LOOKS_EVERY_S)
            worker.end(signal.SIGTERM, DRAINED)
        for worker in self.slots:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.surprises.append(f"{worker.log.name}: did not end within {_STOPS_WITHIN_S:g} s of SIGTERM")
            else:
                self._note_exit(worker)
        for worker in self.started:
            if worker.engine is not None and _is_alive(worker.engine):
                self.surprises.append(f"{worker.log.name}: its engine has outlived it")
            if "Traceback" in worker.log.read_text(errors="replace"):
                self.surprises.append(f"{worker.log.name}: a traceback")

    def kill(self) -> None:
        """End all processes, whatever they do. Harmless after `stop`."""
        for worker in self.started:
            worker.resume()
            if worker.is_running or (worker.engine is not None and _is_alive(worker.engine)):
                worker.stop()

    def _note_exit(self, worker: Worker) -> None:
        code = worker.process.wait()
        self.exits[code] = self.exits.get(code, 0) + 1
        if code not in worker.fate and code != NO_REDIS:
            self.surprises.append(f"{worker.log.name}: ended with {code}, which nobody has caused")


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
