"""One peer's part in the bench `queue`: puts no-op jobs on its queue, or works on them.

A program for an environment that holds the peers (ops/bench/queue_systems.py makes it) and nothing of ours.

    queue_peer.py SYSTEM enqueue --redis URL --jobs N    prints the seconds that it took, connecting not counted
    queue_peer.py SYSTEM work --redis URL --rows N       prints "ready", waits for a line, then works until killed

Every job is a coroutine (a function with Celery) that returns its argument; its result is kept as the system keeps
results by default, or for an hour where it keeps none unless told to. Settings are a system's defaults but for the
number of jobs at once. All run on uvloop, where they run on an event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

QUEUE = "bench"
KEEP_S = 3600
CHUNK = 500  # jobs put on the queue at once, where there is a way


def wait_for_go() -> None:
    """Tell whoever started us that all is imported, and wait until they say so."""
    print("ready", flush=True)
    sys.stdin.readline()


async def timed(enqueue: Callable[[], Awaitable[Any]]) -> None:
    began = time.perf_counter()
    await enqueue()
    print(time.perf_counter() - began)


async def arq(action: str, url: str, jobs: int, rows: int) -> None:
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.worker import Worker

    async def noop(context: dict[Any, Any], number: int) -> int:
        return number

    settings = RedisSettings.from_dsn(url)
    if action == "enqueue":
        pool = await create_pool(settings)

        async def enqueue() -> None:
            for first in range(0, jobs, CHUNK):
                numbers = range(first, min(first + CHUNK, jobs))
                await asyncio.gather(*(pool.enqueue_job("noop", number) for number in numbers))

        await timed(enqueue)
    else:
        worker = Worker([noop], redis_settings=settings, max_jobs=rows)
        wait_for_go()
        await worker.async_run()


async def saq(action: str, url: str, jobs: int, rows: int) -> None:
    from saq import Queue, Worker

    async def noop(context: dict[str, Any], *, number: int) -> int:
        return number

    queue = Queue.from_url(url, name=QUEUE)
    await queue.connect()
    if action == "enqueue":

        async def enqueue() -> None:
            for first in range(0, jobs, CHUNK):
                numbers = range(first, min(first + CHUNK, jobs))
                await asyncio.gather(*(queue.enqueue("noop", number=number) for number in numbers))

        await timed(enqueue)
    else:
        worker = Worker(queue, [("noop", noop)], concurrency=rows)
        wait_for_go()
        await worker.start()


async def streaq(action: str, url: str, jobs: int, rows: int) -> None:
    from streaq import Worker

    worker: Any = Worker(redis_url=url, queue_name=QUEUE, concurrency=rows)

    @worker.task(name="noop")
    async def noop(number: int) -> int:
        return number

    if action == "enqueue":

        async def enqueue() -> None:
            for first in range(0, jobs, CHUNK):
                numbers = range(first, min(first + CHUNK, jobs))
                await worker.enqueue_many([noop.enqueue(number) for number in numbers])

        async with worker:
            await timed(enqueue)
    else:
        wait_for_go()
        await worker.run_async()


async def taskiq(action: str, url: str, jobs: int, rows: int) -> None:
    from taskiq.api import run_receiver_task
    from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

    results: Any = RedisAsyncResultBackend(url, result_ex_time=KEEP_S)
    broker = RedisStreamBroker(url, queue_name=QUEUE, consumer_id="0").with_result_backend(results)

    @broker.task(task_name="noop")
    async def noop(number: int) -> int:
        return number

    if action == "enqueue":
        await broker.startup()

        async def enqueue() -> None:
            for first in range(0, jobs, CHUNK):
                numbers = range(first, min(first + CHUNK, jobs))
                await asyncio.gather(*(noop.kiq(number) for number in numbers))

        await timed(enqueue)
    else:
        broker.is_worker_process = True
        wait_for_go()
        await run_receiver_task(broker, max_async_tasks=rows, max_prefetch=rows, run_startup=True)


def celery(action: str, url: str, jobs: int, rows: int) -> None:
    from celery import Celery, signals

    app = Celery("bench", broker=url, backend=url)
    app.conf.update(worker_prefetch_multiplier=rows, worker_hijack_root_logger=False)

    @app.task(name="noop")
    def noop(number: int) -> int:
        return number

    if action == "enqueue":
        noop.delay(-1).forget()  # connects
        app.control.purge()
        began = time.perf_counter()
        for number in range(jobs):
            noop.delay(number)
        print(time.perf_counter() - began)
    else:
        signals.worker_init.connect(lambda **_: wait_for_go(), weak=False)
        quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel=error"]
        app.worker_main(["worker", "--pool=prefork", "--concurrency=1", *quiet])


def main() -> None:
    systems: dict[str, Any] = {"arq": arq, "saq": saq, "streaq": streaq, "taskiq-redis": taskiq, "celery": celery}
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=systems)
    parser.add_argument("action", choices=("enqueue", "work"))
    parser.add_argument("--redis", required=True)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64)
    given = parser.parse_args()
    run, arguments = systems[given.system], (given.action, given.redis, given.jobs, given.rows)
    if not asyncio.iscoroutinefunction(run):
        run(*arguments)
        return
    import uvloop

    uvloop.run(run(*arguments))


if __name__ == "__main__":
    main()
