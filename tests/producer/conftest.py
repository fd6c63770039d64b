"""A queue partition to work on, on fakeredis and on a real Redis, and a worker played by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import fakeredis
import pytest
import redis

from producer import calls, wire
from producer.calls import Claim, Delivery, Held, Publication, PublishReply
from producer.connection import connect
from producer.keys import Keys
from producer.protocol import Failure, FinishReason, Job, Result, running_hash
from tests.producer.declared import DeclaredKeys

T = TypeVar("T")
STARTED = wire.encode_started("a test")


class Desk:
    """One partition, and what workers and producers do to it, a line each."""

    def __init__(self, connection: redis.Redis, keys: Keys, window: int = 1_000_000) -> None:
        """window: how many of a tenant's jobs may stand on the lanes; here it is no test's business but one's own."""
        self.redis, self.keys = connection, keys
        self.redis.hset(keys.control, "tenant_window", window)

    def run(self, call: calls.Call[T]) -> T:
        return calls.run(self.redis, call)

    def submit(self, **fields: Any) -> str:
        return self.run(calls.enqueue(self.keys, Job(**{"prompt": "hello", **fields}))).job_id

    def pull(self, consumer: str, room: int = 1, **more: Any) -> list[Delivery]:
        return self.run(calls.pull(self.keys, consumer, room, **more)).deliveries

    def claim(self, delivery: Delivery, consumer: str) -> Claim:
        return self.run(calls.claim(self.keys, delivery, consumer, STARTED))

    def take(self, consumer: str) -> Claim:
        """Pull one and claim it."""
        (delivery,) = self.pull(consumer)
        return self.claim(delivery, consumer)

    def reclaim(self, consumer: str, lease_ms: int = 0, count: int = 10) -> list[Delivery]:
        return self.run(calls.reclaim(self.keys, consumer, lease_ms, calls.ReclaimCursor(), count)).deliveries

    def take_over(self, consumer: str) -> Claim:
        """Reclaim one whose lease counts as over, and claim it."""
        (delivery,) = self.reclaim(consumer)
        return self.claim(delivery, consumer)

    def publish(self, claim: Claim, consumer: str, start: int, token_ids: Sequence[int]) -> PublishReply:
        before = self.token_ids(claim.delivery.job_id)[:start]
        (reply,) = self.run(calls.publish(self.keys, consumer, [publication(claim, start, token_ids, before)]))
        return reply

    def finish(
        self, claim: Claim, consumer: str, start: int, token_ids: Sequence[int] = (), reason: FinishReason = "stop"
    ) -> PublishReply:
        before = self.token_ids(claim.delivery.job_id)[:start]
        return self.run(finish_call(self.keys, claim, consumer, start, token_ids, reason, before))

    def renew(self, consumer: str, *claims: Claim) -> list[bool]:
        return self.run(calls.renew(self.keys, consumer, [Held(claim.delivery, claim.epoch) for claim in claims]))

    def hand_back(self, consumer: str, *claims: Claim, **more: Any) -> list[bool]:
        held = [Held(claim.delivery, claim.epoch) for claim in claims]
        return self.run(calls.hand_back(self.keys, consumer, held, **more))

    def status(self, job_id: str) -> calls.JobStatus:
        status = self.run(calls.status(self.keys, job_id))
        assert status is not None
        return status

    def events(self, job_id: str) -> list[Any]:
        return [wire.decode_event(*entry) for entry in self.redis.xrange(self.keys.tokens(job_id))]

    def token_ids(self, job_id: str) -> list[int]:
        return [token for event in self.events(job_id) if event.kind == "tokens" for token in event.token_ids]

    def pending(self) -> int:
        return sum(self.redis.xpending(lane, "workers")["pending"] for lane in self.keys.lanes)


def blob(token_ids: Sequence[int], before: Sequence[int] = ()) -> bytes:
    """Tokens as a worker encodes them; each one's text is its number and a space."""
    return wire.encode_tokens(
        list(token_ids), [f"{token} " for token in token_ids], running_hash(0, [*before, *token_ids])
    )


def publication(claim: Claim, start: int, token_ids: Sequence[int], before: Sequence[int] = ()) -> Publication:
    tokens = blob(token_ids, before) if token_ids else None
    return Publication(claim.delivery.job_id, claim.epoch, start, len(token_ids), tokens)


def finish_call(
    keys: Keys,
    claim: Claim,
    consumer: str,
    start: int,
    token_ids: Sequence[int] = (),
    reason: FinishReason = "stop",
    before: Sequence[int] = (),
) -> calls.Call[PublishReply]:
    result = Result(job_id=claim.delivery.job_id, finish_reason=reason, text="done", token_ids=tuple(token_ids))
    return calls.finish(
        keys,
        claim.delivery,
        consumer,
        claim.epoch,
        start=start,
        count=len(token_ids),
        tokens=blob(token_ids, before) if token_ids else None,
        ended=wire.encode_ended(reason),
        result=wire.encode_result(result),
        reason=reason,
    )


@pytest.fixture(params=["fakeredis", "redis"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """An empty partition, once on fakeredis and once on a real Redis."""
    if request.param == "redis":
        with DeclaredKeys(request.getfixturevalue("redis_url")) as connection:
            yield Desk(connection, Keys("test"))
            assert connection.refusals() == [], "a script touched a key that it does not declare"
    else:
        with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as connection:
            yield Desk(connection, Keys("test"))


@pytest.fixture
def real_desk(redis_client: redis.Redis) -> Desk:
    """An empty partition on a real Redis, for what fakeredis does not do."""
    return Desk(redis_client, Keys("test"))


@pytest.fixture
def make_publication() -> Callable[..., Publication]:
    return publication


class EchoWorker(threading.Thread):
    """A worker whose model repeats the prompt, word by word, a token each. Ends when its `with` does."""

    def __init__(self, url: str, keys: Keys) -> None:
        super().__init__(daemon=True)
        self._desk = Desk(connect(url), keys)
        self._stopped = threading.Event()

    def __enter__(self) -> EchoWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join(10)
        assert not self.is_alive()
        self._desk.redis.close()

    def run(self) -> None:
        while not self._stopped.is_set():
            if calls.wait_for_work(self._desk.redis, self._desk.keys, 0.05):
                for delivery in self._desk.pull("echo"):
                    claim = self._desk.claim(delivery, "echo")
                    if claim.status == "ok":
                        self._answer(claim)

    def _answer(self, claim: Claim) -> None:
        job_id = claim.delivery.job_id
        words = (wire.decode_job(claim.payload or b"", job_id).prompt or "").split()
        ids, pieces = list(range(len(words))), [f"{word} " for word in words]
        for at, token in enumerate(ids):
            tokens = wire.encode_tokens([token], [pieces[at]], running_hash(0, ids[: at + 1]))
            self._desk.run(calls.publish(self._desk.keys, "echo", [Publication(job_id, claim.epoch, at, 1, tokens)]))
        failed = "fail" in words
        reason: FinishReason = "failed" if failed else "stop"
        error = Failure(code="asked_to", message="the prompt says so") if failed else None
        result = Result(job_id=job_id, finish_reason=reason, text="".join(pieces), token_ids=tuple(ids), error=error)
        self._desk.run(
            calls.finish(
                self._desk.keys,
                claim.delivery,
                "echo",
                claim.epoch,
                start=len(ids),
                ended=wire.encode_ended(reason, error),
                result=wire.encode_result(result),
                reason=reason,
            )
        )


@pytest.fixture
def echo_worker(redis_url: str) -> Iterator[EchoWorker]:
    """A worker on queue `test` that answers each job with its own prompt."""
    with EchoWorker(redis_url, Keys("test")) as worker:
        yield worker
