"""`make chaos`: jobs through a real Redis and real workers, while a monkey kills, pauses and cuts; then an audit.

Every accepted job must have one whole, right answer, and every reader must have seen just that. The seed draws the jobs
and the mischief; processes keep their own time, so a run with the same seed is alike, not the same. Logs of all
processes, Redis' append-only file, the journal of the mischief and the result stay in the directory that is named.

Exit codes: 0 nothing was found, 1 the audit found something (or the run could not be done), 2 bad flags, 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ops.chaos.report import in_time, plain, table
from ops.chaos.run import Options, run
from ops.redis_server import RedisUnavailable

ROOT = Path(__file__).parents[2]
SHORT = {"jobs": 150, "outage_s": 3.0, "mischief": 14, "lease_s": 2.0, "pause_s": 0.4}
LONG = {"jobs": 2000, "outage_s": 60.0, "mischief": 200, "lease_s": 3.0, "pause_s": 1.0}
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    given = _arguments(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an engine that is paused would outlive us
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    directory = given.directory or ROOT / "build" / "chaos" / f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    print(f"seed {seed}, appendfsync {given.appendfsync}, {given.jobs} jobs; logs: {directory}", flush=True)
    options = Options(
        seed=seed,
        jobs=given.jobs,
        directory=directory,
        workers=given.workers,
        appendfsync=given.appendfsync,
        lease_s=given.lease_s,
        outage_s=given.outage_s,
        mischief=given.mischief,
        pause_s=given.pause_s,
    )
    try:
        report = run(options, lambda line: print(line, flush=True))
    except (RuntimeError, RedisUnavailable) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"chaos: stopped; logs: {directory}", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"\n{table(report)}")
    written = json.dumps(plain(report), indent=1) + "\n"
    paths = [directory / "result.json"]
    if given.save:
        RESULTS.mkdir(exist_ok=True)
        paths.append(RESULTS / f"{time.strftime('%Y-%m-%d')}-{given.appendfsync}-{given.jobs}-{seed}.json")
    for path in paths:
        path.write_text(written)
        print(f"JSON: {path}")
    return 0 if report.passed and in_time(report) else 1


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ops.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of jobs and mischief; drawn if not given, and printed")
    parser.add_argument("--jobs", type=int, help="2,000 by default")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--appendfsync", choices=("everysec", "always"), default="everysec", help="of Redis")
    parser.add_argument("--lease-s", type=float, help="of the workers; 3 by default")
    parser.add_argument("--outage-s", type=float, help="how long Redis is away, once; 60 by default")
    parser.add_argument("--mischief", type=int, help="things the monkey does; 200 by default")
    parser.add_argument("--pause-s", type=float, help="about how long it waits between two of them; 1 by default")
    parser.add_argument("--short", action="store_true", help=f"other defaults: {SHORT}")
    parser.add_argument("--directory", type=Path, help="for logs; a new one under build/chaos by default")
    parser.add_argument("--save", action="store_true", help=f"keep the JSON in {RESULTS.relative_to(ROOT)}/ as well")
    given = parser.parse_args(arguments)
    for name, value in (SHORT if given.short else LONG).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.workers < 2:
        parser.error(f"--workers: expected at least 2, so that one can take over; got {given.workers}")
    if given.outage_s <= given.lease_s:
        parser.error(f"--outage-s: expected more than a lease ({given.lease_s:g} s), got {given.outage_s:g}")
    return given


if __name__ == "__main__":
    sys.exit(main())
