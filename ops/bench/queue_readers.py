"""The readers of the bench `queue`: each submits a job, follows it to its end, and does so again.

All in one process over one AsyncProducer, in a task each. On stdout one JSON object: `first_token_s`, from the call of
submit to the first tokens event, a job each; `events`, [job, offset after it, when it was here] in seconds of the
monotonic clock, for every tokens event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

from producer import AsyncProducer, Tokens


@dataclass
class Seen:
    """What all readers have seen."""

    first_token_s: list[float] = field(default_factory=list)
    events: list[tuple[str, int, float]] = field(default_factory=list)


async def read(producer: AsyncProducer, tokens: int, jobs: int, wait_s: float, seen: Seen) -> None:
    """One reader's life."""
    await asyncio.sleep(wait_s)
    for _ in range(jobs):
        began, first = time.monotonic(), True
        job = await producer.submit(prompt="Count", max_tokens=tokens, temperature=0.0, ignore_eos=True)
        async for event in producer.stream(job):
            if isinstance(event, Tokens):
                now = time.monotonic()
                seen.events.append((job, event.offset, now))
                if first:
                    seen.first_token_s.append(now - began)
                    first = False


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.queue_readers")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--readers", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True, help="one after the other, of each reader")
    parser.add_argument("--tokens", type=int, required=True, help="of each job")
    parser.add_argument("--spread", type=float, required=True, help="seconds over which the readers come")
    given = parser.parse_args()
    seen = Seen()
    async with AsyncProducer(given.redis) as producer:
        waits = [given.spread * number / given.readers for number in range(given.readers)]
        await asyncio.gather(*(read(producer, given.tokens, given.jobs, wait, seen) for wait in waits))
    json.dump(asdict(seen), sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
