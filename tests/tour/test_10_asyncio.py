"""10. The same with asyncio.

`AsyncProducer` has the same methods, awaited: one task follows one job, and a service follows hundreds.
"""

import asyncio

from producer import AsyncProducer


def test_one_service_follows_many_jobs_at_once(url, worker):
    """Forty streams in one event loop, each with its own text."""

    async def count(queue, n):
        text = ""
        async for event in queue.stream(await queue.submit(prompt=f"Count from {n} to {n + 9}\n")):
            if event.kind == "tokens":
                text += event.text
        return text

    async def count_all():
        async with AsyncProducer(url) as queue:
            return await asyncio.gather(*(count(queue, n) for n in range(10, 50)))

    assert asyncio.run(count_all()) == [" ".join(map(str, range(n, n + 10))) for n in range(10, 50)]


def test_the_first_of_several_answers_wins(url, worker):
    """Jobs race; whoever is not needed any more is cancelled."""

    async def race():
        async with AsyncProducer(url) as queue:
            long = await queue.submit(prompt="Count from 1 to 100", max_tokens=900, ignore_eos=True)
            short = await queue.submit(prompt="Count from 3 to 5\n")
            waiting = {asyncio.create_task(queue.result(job), name=job) for job in (long, short)}
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                await queue.cancel(task.get_name())
            return [task.result() for task in done], await asyncio.gather(*waiting)

    with worker.slow():
        (winner,), (loser,) = asyncio.run(race())
    assert winner.text == "3 4 5"
    assert loser.finish_reason == "cancelled"
