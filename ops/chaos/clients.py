"""The producers and readers of a chaos run, in one event loop of a thread of their own.

In: the plan and Redis' url. Out: what was accepted (`asked`) and what each reader saw (`seen`). Each producer has a
client of its own. They know nothing of what goes on: what fails they try again, as a service would.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing

from ops.chaos.audit import Ask, Seen
from ops.chaos.plan import Planned
from producer import AsyncProducer
from producer.errors import InvalidJob, JobUnknown, RedisUnavailable, SlipstreamError
from producer.protocol import Job, Tokens

_AGAIN_S = 0.2  # after Redis was away


class Clients:
    """All producers and readers. `start`, watch `outstanding`, then `join`."""

    def __init__(self, url: str, planned: Sequence[Planned], producers: int, most: int) -> None:
        """most: jobs on their way at once."""
        self.asked: dict[str, Ask] = {}
        self.seen = {one.job.id: Seen() for one in planned}
        self.submitted = 0
        self.too_late: set[str] = set()
        """Jobs that were refused because Redis was away past their deadline."""
        self.told_twice_differently: list[str] = []
        self._url, self._planned, self._producers, self._most = url, planned, producers, most
        self._fed = 0  # jobs that may be submitted by now
        self._over: set[str] = set()
        self._given_up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="clients", daemon=True)

    @property
    def outstanding(self) -> int:
        """Jobs that were submitted and whose readers still read."""
        return self.submitted - len(self._over)

    @property
    def done(self) -> bool:
        """Whether all is submitted and read to its end."""
        return not self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def feed(self, jobs: int) -> None:
        """Have so many more jobs submitted, as soon as Redis and the limit let them."""
        self._fed = min(len(self._planned), max(self._fed, self.submitted) + jobs)

    def give_up(self) -> None:
        """Have everybody leave: what they wait for does not come."""
        self._given_up.set()

    def join(self) -> None:
        """Wait for the end. Raises what surprised the clients."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:
            self._error = error

    async def _all(self) -> None:
        work = asyncio.ensure_future(self._produce_all())
        while not work.done() and not self._given_up.is_set():
            await asyncio.wait([work], timeout=0.2)
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
        elif error := work.exception():
            raise error

    async def _produce_all(self) -> None:
        async with asyncio.TaskGroup() as producers:
            for number in range(self._producers):
                own = [one for one in self._planned if one.producer == number]
                producers.create_task(self._produce(own))

    async def _produce(self, planned: Sequence[Planned]) -> None:
        async with AsyncProducer(self._url, timeout_s=5.0) as producer, asyncio.TaskGroup() as tasks:
            for one in planned:
                while self.outstanding >= self._most or self.submitted >= self._fed:
                    await asyncio.sleep(0.02)
                self.submitted += 1
                tasks.create_task(self._life(producer, one))

    async def _life(self, producer: AsyncProducer, one: Planned) -> None:
        """Submit a job, read it to its end, and do beside it what the plan says."""
        job = _timed(one)
        try:
            if not await self._submit(producer, job, one):
                return
            async with asyncio.TaskGroup() as beside:
                beside.create_task(self._read(producer, one))
                if one.twice:
                    beside.create_task(self._submit_again(producer, job))
                if one.cancel_s is not None:
                    beside.create_task(self._cancel(producer, job.id, one.cancel_s))
        finally:
            self._over.add(job.id)

    async def _submit(self, producer: AsyncProducer, job: Job, one: Planned) -> bool:
        while True:
            try:
                await producer.submit(job, wait=60.0)
            except RedisUnavailable:
                await asyncio.sleep(_AGAIN_S)
            except InvalidJob as error:
                if error.field != "deadline":
                    raise
                self.too_late.add(job.id)
                return False
            else:
                self.asked[job.id] = Ask(time.time(), has_deadline=one.deadline_s is not None, twice=one.twice)
                return True

    async def _submit_again(self, producer: AsyncProducer, job: Job) -> None:
        """The same under the same idempotency key: the first job's id, or a loss made good."""
        await asyncio.sleep(0.3)
        try:
            again = await producer.submit(job)
        except (RedisUnavailable, InvalidJob):
            return
        if again != job.id:
            self.told_twice_differently.append(job.id)

    async def _cancel(self, producer: AsyncProducer, job_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        ask = self.asked[job_id]
        ask.cancel_asked = True
        while True:
            try:
                reply = await producer.cancel(job_id)
            except RedisUnavailable:
                await asyncio.sleep(_AGAIN_S)
            except JobUnknown:
                return
            else:
                ask.cancelled = reply.met != "ended"
                return

    async def _read(self, producer: AsyncProducer, one: Planned) -> None:
        """Follow a job to its end, leaving and coming back where the plan says so."""
        seen, leaves = self.seen[one.job.id], list(one.leaves)
        while seen.ended is None:
            events = producer.stream(one.job.id, len(seen.token_ids), from_hash=seen.hash)
            try:
                async with aclosing(events):  # type: ignore[type-var]  # it is a generator, typed as an iterator
                    async for event in events:
                        seen.take(event, time.time())
                        if leaves and isinstance(event, Tokens) and event.offset >= leaves[0][0]:
                            break
            except JobUnknown as error:
                seen.lost = type(error).__name__
                return
            except RedisUnavailable:
                await asyncio.sleep(_AGAIN_S)
                continue
            except SlipstreamError as error:
                seen.broken = f"{type(error).__name__}: {error}"
                return
            if seen.ended is None and leaves:
                began, pause_s = time.time(), leaves.pop(0)[1]
                await asyncio.sleep(pause_s)
                seen.away.append((began, time.time()))


def _timed(one: Planned) -> Job:
    """The job with its times, which count from now."""
    changes = {}
    if one.deadline_s is not None:
        changes["deadline"] = time.time() + one.deadline_s
    if one.not_before_s is not None:
        changes["not_before"] = time.time() + one.not_before_s
    return one.job.model_copy(update=changes)
