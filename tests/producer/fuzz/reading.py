"""Readers: each comes by now and then, and sees the tokens of its job once, in order, and right."""

from __future__ import annotations

from redis.exceptions import ResponseError

from producer import calls
from producer.cursor import EventCursor
from producer.errors import SlipstreamError
from producer.protocol import running_hash
from tests.producer.fuzz.truth import right
from tests.producer.fuzz.world import World


def look(world: World, _: str) -> None:
    for job_id in world.truth.jobs:
        if world.chance.random() < 0.5:
            read_on(world, job_id)


def read_on(world: World, job_id: str) -> None:
    """What a reader sees when it looks at its job and reads on from its place."""
    cursor = world.readers.setdefault(job_id, EventCursor())
    status = world.answer(calls.status(world.keys, job_id))
    if status is None or isinstance(status, SlipstreamError) or cursor.ended:
        return
    cursor.rewind_if_lost(status)
    tokens = world.keys.tokens(job_id)
    try:
        new = cursor.events(world.redis.xrange(tokens, min=f"({cursor.last_entry}"))
        if cursor.last_entry == "0-0":
            new += cursor.events(world.redis.xrange(tokens))
    except ResponseError:
        assert world.job(job_id).harm == "events"
        return
    for event in new:
        if event.kind == "tokens":
            world.read.setdefault(job_id, []).extend(event.token_ids)
            assert event.hash == running_hash(0, right(job_id, 0, event.offset))
        elif event.kind == "resync":
            assert event.offset < len(world.read[job_id]), "told anew from a place the reader has not come to"
            assert world.failed_over or job_id in world.torn, "told anew although nothing was lost"
            del world.read[job_id][event.offset :]
        elif event.kind == "ended":
            world.told[job_id] = event.reason
