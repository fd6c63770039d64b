"""Peer: a system in another Python, fed by its runner (ops/bench/runners) over stdin and stdout."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.bench.machine import ROOT, Others
from ops.bench.systems import Run, Wrong
from ops.bench.workload import Request

_SHOWN = 2000  # characters of what a runner that failed had said


class Peer:
    """Started when made, and ready then. Holds a process until `close`."""

    def __init__(self, name: str, command: list[str]) -> None:
        """Raises Wrong if it does not come up."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        # its threads wait as it thinks best: our own way is not its
        own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**own, "PYTHONPATH": path},
            )
        except OSError as error:
            self._log.close()
            raise Wrong(f"{name}: {command[0]} does not start: {error}") from None
        self.version = str(self._answer()["version"])

    def run(self, requests: list[Request], arrivals: Sequence[float] | None = None) -> Run:
        """Raises Wrong if the process ends instead of answering."""
        assert self._process.stdin is not None
        others, own_s, began = Others(), _cpu_s(self._process.pid), time.perf_counter()
        asked = {
            "prompts": [request.prompt for request in requests],
            "max_tokens": [request.max_tokens for request in requests],
            "arrivals": list(arrivals or [0.0] * len(requests)),
        }
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is told below
        found = self._answer()
        own = (_cpu_s(self._process.pid) - own_s) / (time.perf_counter() - began)
        busy = round(max(0.0, others.cores() - own), 2)
        return Run(found["tokens"], found["times"], found["wall_s"], found["rows"], busy)

    def close(self) -> None:
        """Let it end; it does at the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            raise Wrong(f"{self.name}: its runner ended with exit code {code}; it said: {self._log.read()[-_SHOWN:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, its threads included."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
