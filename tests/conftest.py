"""What every test may use: a real redis-server, an empty database, waiting for a condition, a check for leaked keys.

At the end of a session the time each part took is printed beside its budget; all of it stays under 15 minutes on two
cores.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
import redis

from ops import redis_server as redis_servers

# Read by transformers, tokenizers and their likes at import, so set before a test module imports them.
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the hub fails at once instead of trying
if not os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/kfd"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # no GPU: Triton's kernels run in its interpreter
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else every fork in a test warns

# Tests start some two hundred Python processes. Set-up compiles nothing, and images often set this: then each of them
# would compile all it imports, which is a third of a worker's start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts us in the background has SIGINT ignored, and so would every program that a test sends Ctrl-C to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# part: (folders under tests/, minutes it may take)
PARTS: dict[str, tuple[tuple[str, ...], int]] = {
    "engine and parity": (("engine", "models"), 3),
    "tour": (("tour",), 2),
    "queue, fuzz and chaos": (("producer", "faults", "reach"), 4),
    "Triton interpreter": (("kernels", "gpu"), 2),
    "ahead-of-time": (("aot",), 2),
    "the rest": ((), 2),
}
PART_OF_FOLDER = {folder: part for part, (folders, _) in PARTS.items() for folder in folders}

# Keys that live as long as their queue does; every other key has a TTL once all its jobs have ended.
LASTING_KEYS = ("*:lane:*", "*:control", "*:workers")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[redis_servers.RedisServer]:
    """One real redis-server for the whole session. A test that kills or pauses one starts its own."""
    with redis_servers.start() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: redis_servers.RedisServer) -> str:
    """The url of an empty database, without functions, scripts or clients' leftovers of an earlier test."""
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.flushall()
        connection.script_flush()
    return redis_server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain connection to the database of `redis_url`, answering bytes."""
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def no_leaked_keys(redis_client: redis.Redis) -> Iterator[None]:
    """At the end of the test every key has a TTL or belongs to the queue itself. Ask for it where all jobs end."""
    yield
    leaked = leaked_keys(redis_client)
    assert not leaked, f"keys without a TTL that no queue owns: {leaked}"


def leaked_keys(client: redis.Redis) -> list[str]:
    """The keys that would stay for ever: no TTL and not one of LASTING_KEYS."""
    keys = [key.decode() for key in client.scan_iter(count=1000)]
    return sorted(
        key for key in keys if client.ttl(key) == -1 and not any(fnmatch.fnmatch(key, name) for name in LASTING_KEYS)
    )


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, timeout, what)`: return once `condition()` is true, else fail saying what never came."""
    return wait_for


def wait_for(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Poll `condition` until it is true, `timeout` seconds at most; the test fails with `what` if it never is."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain until {what}")
        time.sleep(0.005)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that leaves a process behind: it would hold a port or a core of whoever runs the next one."""
    names = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # just gone
            names.append(" ".join(child.cmdline()))  # a zombie has none
    names = [name for name in names if name and "multiprocessing.resource_tracker" not in name]  # that one ends with us
    if names:
        print(f"\nprocesses left behind: {names}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_report_header() -> str:
    return f"redis: {redis_servers.find() or redis_servers.NOT_FOUND}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each part's share of the time."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                part = part_of(report.nodeid)
                seconds[part] += report.duration
                tests[part] += report.when == "call"
    if not seconds:
        return
    terminalreporter.section("time by part")
    for part, (_, minutes) in PARTS.items():
        if part in seconds:
            over = "  OVER" if seconds[part] > minutes * 60 else ""
            terminalreporter.line(
                f"{part:<22} {tests[part]:>5} tests {seconds[part]:>7.1f} s of {minutes * 60} s{over}"
            )
    total, allowed = sum(seconds.values()), sum(minutes for _, minutes in PARTS.values())
    terminalreporter.line(f"{'all':<22} {sum(tests.values()):>5} tests {total:>7.1f} s of {allowed * 60} s")


def part_of(nodeid: str) -> str:
    """The part a test belongs to, by the folder under tests/ it lies in."""
    folders = nodeid.split("::")[0].split("/")[:-1]
    return next((PART_OF_FOLDER[folder] for folder in folders if folder in PART_OF_FOLDER), "the rest")
