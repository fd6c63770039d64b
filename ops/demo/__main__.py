"""`make demo`: one worker on the demo model, a queue, and half a minute of jobs at full speed, live in the terminal.

Starts a Redis (a redis-server if there is one, else an embedded one) and a worker, pushes jobs of all lanes and very
different lengths through the queue, checks every answer, runs the same jobs through the same engine in static batches,
prints a summary and draws a picture. Needs no GPU and no settings; leaves no process behind.

Exit codes: 0 all jobs were answered, 1 it could not be done (one line says why), 2 bad flags, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ops.demo.servers import DemoFailed, EngineSettings, Worker, running_redis
from ops.demo.show import Display, display_for
from ops.demo.static import StaticBatches
from ops.demo.summary import Continuous, summary_lines
from ops.demo.supply import Supply
from ops.demo.traffic import Stalled, Traffic
from ops.redis_server import RedisUnavailable as NoRedisServer
from producer import SlipstreamError

ROOT = Path(__file__).parents[2]
MODEL = Path(__file__).parent / "model"
QUEUE = "demo"
LOOKS_PER_S = 10
THREADS = 1  # on two cores that others used too, two waited for each other at every small op: 62 tokens/s, not 1,175
READY_WITHIN_S = 120.0
HEARD_WITHIN_S = 10.0  # a heartbeat comes each second
STOCK = 1500  # jobs drawn while the worker loads its model, so that drawing takes nothing from it later


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    given = _arguments(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        return _demo(given)
    except (DemoFailed, Stalled, SlipstreamError, NoRedisServer) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our lines has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("demo: stopped; nothing of it is left running", file=sys.stderr)
        return 128 + signal.SIGINT


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=24.0, help="of jobs at full speed (%(default)s)")
    parser.add_argument("--rows", type=int, default=16, help="seats in the worker's batch (%(default)s)")
    parser.add_argument("--threads", type=int, default=THREADS, help="of the engine (%(default)s)")
    parser.add_argument("--plain", action="store_true", help="plain lines even on a terminal")
    parser.add_argument("--embedded", action="store_true", help="the embedded Redis even where there is a redis-server")
    parser.add_argument("--model", type=Path, default=MODEL, help="directory of the model that does the demo's tasks")
    parser.add_argument("--seed", type=int, default=1, help="of the jobs that are drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="directory of picture and log")
    given = parser.parse_args(arguments)
    if given.rows < 1 or given.seconds <= 0:
        parser.error("--rows must be at least 1 and --seconds more than 0")
    return given


def _demo(given: argparse.Namespace) -> int:
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoFailed(f"can't write the picture and the log ({error}); give --out another directory") from None
    with ExitStack() as stack:
        display = display_for(given.rows, plain=given.plain)
        stack.callback(display.close)
        redis = stack.enter_context(running_redis(embedded=given.embedded))
        display.say(f"Redis: {redis.which}")
        engine = EngineSettings(str(given.model), given.rows, given.threads)
        with Worker(redis.url, QUEUE, given.out / "worker.log", engine) as worker:
            display.say(f"Worker: starting on the model in {_readable(given.model)}")
            static_batches = stack.enter_context(StaticBatches())
            from ops.demo.plot import draw  # a second and a half, while the worker loads its model

            supply = Supply(given.seed)
            traffic = Traffic(redis.url, QUEUE, given.rows, given.seconds, supply)
            stack.callback(traffic.close)
            display.say(_ready(worker, traffic, supply))
            run = _run(worker, traffic, display)
        display.say(f"Now these jobs in static batches, by the same engine, for as long ({run.seconds:.0f} s)")
        display.static(0.0, 0, 0)
        jobs = [job.asked.job for job in run.jobs]
        static = static_batches.run(engine, run.seconds, jobs, display.static)
        picture = given.out / "rows.png"
        draw(given.rows, run, static, picture)
    print("\n".join(["", *summary_lines(given.rows, run, static), f"  picture: {_readable(picture)}"]))
    if run.failed:
        first = run.failed[0].ended
        why = first.error.message if first and first.error else "no reason given"
        raise DemoFailed(f"{len(run.failed)} jobs ended without an answer, the first because: {why}")
    return 0


def _ready(worker: Worker, traffic: Traffic, supply: Supply) -> str:
    """Wait for the worker's first heartbeat, drawing jobs meanwhile. What it says of itself, as a line."""
    while traffic.worker_load() is None:
        worker.check()
        if time.monotonic() - worker.began > READY_WITHIN_S:
            raise DemoFailed(f"the worker was not ready within {READY_WITHIN_S:.0f} s; its log: {worker.log}")
        if supply.stocked < STOCK:
            supply.stock(40)
        time.sleep(0.05)
    said = worker.described()
    return (
        f"Worker: ready after {time.monotonic() - worker.began:.1f} s; {said['architecture']} in {said['dtype']}, "
        f"{said['max_rows']} rows, {said['threads']} CPU thread{'s' * (said['threads'] > 1)}, backend {said['backend']}"
    )


def _run(worker: Worker, traffic: Traffic, display: Display) -> Continuous:
    """Push the jobs through and show them, to the last end."""
    cpu = time.process_time()
    traffic.begin()
    while not traffic.is_over:
        next_look = time.monotonic() + 1 / LOOKS_PER_S
        worker.check()
        traffic.look()
        display.traffic(traffic)
        time.sleep(max(0.0, next_look - time.monotonic()))
    seconds, cpu = traffic.elapsed, time.process_time() - cpu
    traffic.collect_timings()
    return Continuous(traffic.jobs, seconds, _mean_rows(worker, traffic), traffic.waves, cpu / seconds)


def _mean_rows(worker: Worker, traffic: Traffic) -> float:
    """Rows that took part in a step, averaged over all steps of this worker, by its own counters."""
    began = time.monotonic()
    while (load := traffic.worker_load()) is None or load["finished"] < len(traffic.jobs):
        worker.check()
        if time.monotonic() - began > HEARD_WITHIN_S:
            raise DemoFailed(f"the worker has ended all jobs, but its heartbeat does not say so; its log: {worker.log}")
        time.sleep(0.05)
    return float(load["row_steps"] / load["steps"])


def _readable(path: Path) -> Path:
    """Relative to where we are, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End by a signal as by an exception, so that everything started is stopped on the way out."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
