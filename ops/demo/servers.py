"""The processes of the demo: a Redis (real or embedded) and a worker. Each ends with us, however we end.

`running_redis` and `Worker` are context managers. The worker's output goes to a file; `check` raises DemoFailed once it
is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ops import redis_server

_STOP_WITHIN_S = 8.0


class DemoFailed(Exception):
    """The demo can't go on; one line that says why and where to look."""


@dataclass(frozen=True)
class EngineSettings:
    """What the worker's engine and that of the static batches have in common."""

    model: str
    max_rows: int
    threads: int


class Program:
    """`python -m <module> <arguments>` from this tree, in a session of its own: a Ctrl-C is ours to act on."""

    def __init__(self, module: str, *arguments: str, **streams: Any) -> None:
        """`streams` are Popen's stdin (none by default), stdout, stderr."""
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.process: subprocess.Popen[str] = subprocess.Popen(
            redis_server.ending_with_us(sys.executable, "-m", module, *arguments),
            **{"stdin": subprocess.DEVNULL, **streams},
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def stop(self) -> None:
        """End it and what it has started. Harmless where it has ended."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with suppress(ProcessLookupError):  # its group is its own; a child that outlives it by a step goes too
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass(frozen=True)
class Redis:
    """A running Redis: its url, and which one it is."""

    url: str
    which: str


@contextmanager
def running_redis(*, embedded: bool) -> Iterator[Redis]:
    """A redis-server if there is one, on a free port and with nothing kept; else, or if asked for, the embedded one.

    Raises DemoFailed or RedisUnavailable where it does not come up.
    """
    found = None if embedded else redis_server.find(may_install=False)
    if found is not None:
        with redis_server.start() as server:
            yield Redis(server.url, f"redis-server {found.version} ({found.source})")
        return
    with Program("ops.demo.embedded_redis", stdout=subprocess.PIPE) as program:
        assert program.process.stdout is not None
        port = program.process.stdout.readline().strip()
        if not port:
            raise DemoFailed("the embedded Redis did not start; why stands above")
        why = "as asked" if embedded else "no redis-server here"
        yield Redis(f"redis://127.0.0.1:{port}/0", f"embedded fakeredis ({why})")


class Worker(Program):
    """One worker on a queue; its log is in a file, as JSON lines."""

    def __init__(self, redis_url: str, queue: str, log: Path, engine: EngineSettings) -> None:
        self.log = log
        self.began = time.monotonic()
        settings = {"redis": redis_url, "queue": queue, "log-format": "json", "drain-grace-s": 0, **asdict(engine)}
        flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        with log.open("w") as output:
            super().__init__("worker", *flags, stdout=output, stderr=subprocess.STDOUT)

    def check(self) -> None:
        """Raise DemoFailed if it has ended."""
        code = self.process.poll()
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise DemoFailed(f"the worker {how}; its log: {self.log}")

    def described(self) -> dict[str, Any]:
        """What it said of itself when it was ready: dtype, backend, threads...; empty if it has not."""
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("event") == "worker_ready":
                    return said
        return {}
