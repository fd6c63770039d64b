"""The systems of the bench `queue`, each as it is fed, started and asked how much it has left.

Slipstream's worker is ops/bench/queue_worker.py. A peer is ops/bench/queue_peer.py in an environment of its own under
build/, which pip makes when one is asked for: none is a requirement of ours, and two of them exclude each other.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import redis as sync_redis

from ops import redis_server
from ops.bench.machine import ROOT
from ops.bench.report import BenchError
from producer import Job, Producer
from producer.keys import Keys

MODEL = ROOT / "ops" / "demo" / "model"
ENVIRONMENTS = ROOT / "build" / "bench-peers"
ALL = ["uvloop", "hiredis"]  # beside each: what makes any of them faster
_PROGRAM = Path(__file__).with_name("queue_peer.py")
QUEUE = "default"


class Failed(BenchError):
    """A system could not be measured; says why."""


class System(Protocol):
    """A queue with workers that do nothing."""

    @property
    def name(self) -> str: ...

    @property
    def versions(self) -> dict[str, str]: ...

    def enqueue(self, url: str, jobs: int) -> float:
        """Put no-op jobs on the queue; seconds. Raises Failed."""
        ...

    def start(self, url: str, rows: int) -> subprocess.Popen[str]:
        """A worker for `rows` jobs at once that prints "ready" and waits for a line."""
        ...

    def left(self, redis: sync_redis.Redis, jobs: int) -> int:
        """Of so many jobs those that have not ended, or a few less: cheap."""
        ...

    def answered(self, redis: sync_redis.Redis) -> int:
        """Results that are there."""
        ...


@dataclass(frozen=True)
class Slipstream:
    """Ours. `tokens`: of each job; one is what comes closest to nothing."""

    tokens: int = 1
    step_ms: float | None = None
    every: int = 1
    name: str = "slipstream"

    @property
    def versions(self) -> dict[str, str]:
        return {"redis": sync_redis.__version__}

    def enqueue(self, url: str, jobs: int) -> float:
        fields = {"prompt": "Count", "sampling": {"max_tokens": self.tokens, "temperature": 0, "ignore_eos": True}}
        with Producer(url, queue=QUEUE) as producer:
            began = time.perf_counter()
            producer.submit_many(Job.model_validate(fields) for _ in range(jobs))
            return time.perf_counter() - began

    def start(self, url: str, rows: int, *flags: str) -> subprocess.Popen[str]:
        step = [f"--step-ms={self.step_ms}", f"--every={self.every}"] if self.step_ms else []
        command = [sys.executable, "-m", "ops.bench.queue_worker", f"--redis={url}", f"--model={MODEL}"]
        return _start([*command, f"--rows={rows}", *step, *flags])

    def left(self, redis: sync_redis.Redis, jobs: int) -> int:
        return int(redis.zcard(Keys(QUEUE).deadlines))

    def answered(self, redis: sync_redis.Redis) -> int:
        return _count(redis, "*:result:*")


@dataclass(frozen=True)
class Peer:
    """Another's, at its defaults."""

    name: str
    requirement: str  # and what it forgets to require
    left_in: Callable[[sync_redis.Redis, int], int]
    results: str  # the pattern of their keys
    besides: int = 0  # keys that the pattern meets too
    since: int = 0  # Redis's version that it needs

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    @property
    def versions(self) -> dict[str, str]:
        said = subprocess.run(
            [str(self.python), "-m", "pip", "freeze", "--disable-pip-version-check"],
            capture_output=True,
            text=True,
            check=True,
        )
        pins = dict(line.split("==") for line in said.stdout.splitlines() if "==" in line)
        wanted = (self.name, "taskiq", "redis", "coredis", *ALL)
        return {name: pins[name] for name in wanted if name in pins}

    @property
    def _program(self) -> list[str]:
        # -P: or the folder of this file is searched first, and `import queue` finds the bench of that name
        return [str(self.python), "-P", str(_PROGRAM), self.name]

    def prepare(self) -> None:
        """Make its environment, if it is not there. Raises Failed, also where Redis here is too old for it."""
        server = redis_server.find()
        if server and int(server.version.split(".")[0]) < self.since:
            others = ",".join(peer.name for peer in PEERS if not peer.since)
            raise Failed(
                f"{self.name} needs Redis {self.since} or later, this is {server}: "
                f"put a newer one on PATH, or leave it out with --peers {others}"
            )
        directory = ENVIRONMENTS / self.name
        if (directory / ".ready").exists():
            return
        print(f"installing {self.requirement} into {directory.relative_to(ROOT)}", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        venv.create(directory, with_pip=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *self.requirement.split(), *ALL], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"pip can't install {self.requirement}: {done.stderr.strip().splitlines()[-1]}")
        (directory / ".ready").touch()

    def enqueue(self, url: str, jobs: int) -> float:
        command = [*self._program, "enqueue", f"--redis={url}", f"--jobs={jobs}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{self.name} can't enqueue: {done.stderr.strip().splitlines()[-1]}")
        return float(done.stdout)

    def start(self, url: str, rows: int) -> subprocess.Popen[str]:
        return _start([*self._program, "work", f"--redis={url}", f"--rows={rows}"], subprocess.DEVNULL)

    def left(self, redis: sync_redis.Redis, jobs: int) -> int:
        return self.left_in(redis, jobs)

    def answered(self, redis: sync_redis.Redis) -> int:
        return _count(redis, self.results) - self.besides


def _length(redis: sync_redis.Redis, command: str, key: str) -> int:
    return cast("int", redis.execute_command(command, key))


PEERS = [
    Peer("arq", "arq", lambda redis, jobs: _length(redis, "ZCARD", "arq:queue"), "arq:result:*"),
    Peer(
        "saq",
        "saq[redis] typing_extensions",
        lambda redis, jobs: _length(redis, "ZCARD", "saq:bench:incomplete"),
        "saq:job:bench:*",
    ),
    Peer(
        "streaq",
        "streaq",
        lambda redis, jobs: _length(redis, "XLEN", "streaq:bench:queues:normal"),
        "streaq:bench:task:results:*",
        since=7,
    ),
    # Its stream keeps what was acknowledged: what is done shows in the results. One more key is the stream.
    Peer("taskiq-redis", "taskiq-redis", lambda redis, jobs: jobs + 1 - redis.dbsize(), "*", besides=1),
    Peer(
        "celery",
        "celery[redis]",
        lambda redis, jobs: _length(redis, "LLEN", "celery") + _length(redis, "HLEN", "unacked"),
        "celery-task-meta-*",
    ),
]


def _start(command: list[str], stderr: int | None = None) -> subprocess.Popen[str]:
    root = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **streams)


def end(worker: subprocess.Popen[str]) -> None:
    """Kill a worker and all that it has started: it has nothing to do any more, and some take seconds to take leave."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()


def _count(redis: sync_redis.Redis, pattern: str) -> int:
    return sum(1 for _ in redis.scan_iter(pattern, count=10_000))
