"""`make demo`, in a short form: it ends by itself with its summary and picture, and stops cleanly when it can't."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis

from ops.demo.embedded_redis import EmbeddedRedis
from ops.demo.plot import mean_rows
from ops.demo.supply import Supply

ROOT = Path(__file__).parents[2]
ENDS_WITHIN_S = 150  # some 11 on an idle machine


def demo(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "ops.demo", "--out", str(out), "--seconds", "1", *flags]


def figures(output: str, name: str) -> list[float]:
    """The numbers in the line of the summary that begins with `name`."""
    line = next(line for line in output.splitlines() if line.strip().startswith(name))
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?", line.strip()[len(name) :])]


def test_the_demo_ends_by_itself_with_a_summary_and_a_picture(tmp_path: Path) -> None:
    """Output to a pipe: plain lines while it runs, then the figures of both ways of batching, and a PNG."""
    done = subprocess.run(demo(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.startswith(("Redis: redis-server", "Redis: embedded fakeredis"))
    jobs, static_jobs = figures(said, "jobs")
    tokens, static_tokens = figures(said, "tokens ")
    assert jobs >= 64
    assert jobs >= static_jobs >= 16
    assert tokens > jobs
    assert static_tokens > static_jobs
    rows, static_rows = figures(said, "mean rows in use, of 16")
    assert static_rows < rows <= 16
    assert all(speed > 0 for speed in figures(said, "tokens/s"))
    for lane in ("high", "normal", "low"):
        assert len(figures(said, f"{lane} ")) == 5
    exact, of, *_ = figures(said, "answers:")
    assert 0 < exact <= of == jobs
    picture = tmp_path / "rows.png"
    assert f"picture: {picture}" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@pytest.fixture
def running_demo(tmp_path: Path, wait_until: Callable[..., None]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A demo on the embedded Redis whose display is a terminal's, in the middle of its jobs; and what it has drawn."""
    primary, secondary = os.openpty()
    drawn = tmp_path / "drawn"
    drawn.touch()
    flags = demo(tmp_path, "--embedded", "--seconds", "60")
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(flags, cwd=ROOT, stdout=secondary, stderr=secondary, env=environment)
    os.close(secondary)
    reader = threading.Thread(target=copy, args=(primary, drawn))
    reader.start()
    wait_until(lambda: b"finished" in drawn.read_bytes() or process.poll() is not None, 90, "the demo's jobs run")
    assert process.poll() is None, drawn.read_text()
    yield process, drawn
    process.kill()
    process.wait()
    reader.join()
    os.close(primary)


def copy(terminal: int, to: Path) -> None:
    """What a terminal is sent, until nobody holds its other end."""
    with to.open("ab", buffering=0) as file:
        try:
            while sent := os.read(terminal, 65536):
                file.write(sent)
        except OSError:  # how Linux says that the other end is closed
            return


def test_on_a_terminal_rows_are_drawn_and_ctrl_c_leaves_no_process(
    running_demo: tuple[subprocess.Popen[bytes], Path], wait_until: Callable[..., None]
) -> None:
    """A row per seat with its job; SIGINT ends the demo, its Redis, its worker and the worker's engine."""
    process, drawn = running_demo
    wait_until(lambda: b"lane    prompt" in drawn.read_bytes(), 30, "rows are drawn")
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 3
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert psutil.wait_procs(started, timeout=10)[1] == []


def test_a_dead_worker_ends_the_demo_with_one_line(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    """The worker is killed while it loads: exit code 1, a line that says so and where the log is, nothing left."""
    with subprocess.Popen(demo(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        parent = psutil.Process(process.pid)

        def workers() -> list[psutil.Process]:
            found = []
            for child in parent.children():
                with suppress(psutil.Error):  # one that has just ended, like the question which redis-server it is
                    if "worker" in child.cmdline():
                        found.append(child)
            return found

        wait_until(lambda: any(worker.children() for worker in workers()), 60, "a worker starts its engine")
        started = parent.children(recursive=True)
        (worker,) = workers()
        worker.kill()
        said = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 1
    assert psutil.wait_procs(started, timeout=10)[1] == []
    (line,) = said.splitlines()
    assert line.startswith("demo: the worker was killed by SIGKILL; its log: ")
    assert Path(line.rpartition(": ")[2]).exists()


@pytest.fixture
def embedded_redis() -> Iterator[redis.Redis]:
    """A client of an embedded Redis in this process."""
    with EmbeddedRedis() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with redis.Redis(port=server.port, protocol=2) as client:
            yield client
        server.shutdown()
        thread.join()


def test_the_embedded_redis_keeps_a_connection_after_an_error(embedded_redis: redis.Redis) -> None:
    """An error is an answer like any other, with the code that tells clients what to do, and the next follows it."""
    with embedded_redis.client() as one:
        with pytest.raises(redis.exceptions.NoScriptError):
            one.evalsha("f" * 40, 0)
        one.set("word", "x")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            one.lpush("word", "y")
        assert one.get("word") == b"x"


def test_the_embedded_redis_carries_replies_larger_than_a_buffer(embedded_redis: redis.Redis) -> None:
    """Any bytes, and megabytes of them, come back as they were sent."""
    value = bytes(range(256)) * 40_000
    embedded_redis.set("large", value)
    assert embedded_redis.get("large") == value


def test_the_embedded_redis_wakes_a_blocked_reader(embedded_redis: redis.Redis) -> None:
    """A blocking read on one connection gets what another adds."""
    added = threading.Timer(0.05, lambda: embedded_redis.xadd("stream", {"field": "value"}))
    added.start()
    reply = embedded_redis.xread({"stream": "0"}, block=20_000)
    added.join()
    assert reply[0][1][0][1] == {b"field": b"value"}


def test_jobs_come_in_all_lanes_and_very_different_lengths() -> None:
    """From answers of a token or two to some 300, in high, normal and low, as chats and as plain prompts."""
    drawn = Supply(seed=5).take(400)
    assert {one.job.lane for one in drawn} == {"high", "normal", "low"}
    assert {one.job.messages is None for one in drawn} == {True, False}
    lengths = [len(one.example.answer.replace(" ", "")) for one in drawn]  # a digit is a token
    assert min(lengths) <= 2
    assert max(lengths) >= 280


def test_rows_over_time_are_means_over_columns() -> None:
    """A stretch counts in each column for the share that it covers."""
    stretches = [(0.0, 2.0, 1), (0.5, 1.5, 2), (2.9, 9.0, 4)]
    assert mean_rows(stretches, width=1.0, columns=3) == pytest.approx([2.0, 2.0, 0.4])
