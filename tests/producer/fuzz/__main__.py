"""`python -m tests.producer.fuzz`: many seeds, spread over the cores. Exits with 1 where one fails, printed shrunk."""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import as_completed

from tests.producer.fuzz.spread import in_blocks, processes


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    seeds = int(os.environ.get("SLIPSTREAM_FUZZ_SEEDS", "10000"))
    parser.add_argument("--seeds", type=int, default=seeds, help="how many (SLIPSTREAM_FUZZ_SEEDS, else 10000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them; to see one again, with --seeds 1")
    parser.add_argument("--keep-going", action="store_true", help="print every seed that fails, not only the first")
    asked = parser.parse_args()
    began, done, failed = time.monotonic(), 0, 0
    with processes() as pool:
        waiting = in_blocks(pool, range(asked.first, asked.first + asked.seeds), 25)
        for future in as_completed(waiting):
            done += 1
            if text := future.result():
                failed += 1
                print(f"\n{text}", flush=True)
                if not asked.keep_going:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return 1
            if done % 20 == 0 or done == len(waiting):
                print(f"{done} of {len(waiting)} blocks, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{asked.seeds} schedules, {failed} blocks with one that fails, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
