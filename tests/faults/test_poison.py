"""A job that kills every worker that runs it, among 63 that do nothing wrong."""

from __future__ import annotations

import time

import pytest

from ops import redis_server as redis_servers
from producer import Job, Producer
from producer.dead_letters import DeadLetters
from tests.worker.process import WorkerProcess

POISON = [300, 301, 302, 303]
STRIKES = 3
WITHIN_S = 240.0


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(url)` is one more worker that the poison kills; those alive at the end have to stop well."""
    monkeypatch.setenv("POISON", " ".join(map(str, POISON)))
    workers: list[WorkerProcess] = []
    flags = ("--lease-s", "2", "--max-rows", "64", "--max-strikes", str(STRIKES), "--name", "poisoned")

    def start(url: str) -> WorkerProcess:
        workers.append(WorkerProcess(url, tmp_path / f"{len(workers)}.log", *flags))
        return workers[-1]

    yield start
    for worker in workers:
        print(f"--- worker {worker.pid}\n{worker.log}")
        worker.end()


def test_one_poison_job_among_63_good_ones(start):
    """It costs as many workers as it may and no more, and becomes a dead letter; the 63 are all answered, right."""
    good = [
        Job.model_validate({"prompt": f"Count from {first} to {first + 4}", "sampling": {"temperature": 0}})
        for first in range(1, 64)
    ]
    poison = Job.model_validate({"prompt_token_ids": POISON, "sampling": {"max_tokens": 5}})
    with redis_servers.start() as server, Producer(server.url) as producer:
        producer.submit_many([*good[:30], poison, *good[30:]])
        worker, lost = start(server.url), 0
        deadline = time.monotonic() + WITHIN_S
        while not all(producer.status(job.id).ended for job in (*good, poison)):
            assert time.monotonic() < deadline, f"{lost} workers were lost, and it still goes on"
            if not worker.is_running:
                worker, lost = start(server.url), lost + 1
            time.sleep(0.05)

        assert lost == STRIKES
        for first, job in enumerate(good, start=1):
            result = producer.result(job.id)
            counted = [int(word) for word in result.text.replace(",", " ").split() if word.isdigit()]
            assert (result.finish_reason, counted) == ("stop", list(range(first, first + 5)))
            assert producer.status(job.id).strikes <= 1, "a neighbour is blamed once at most"
        end = producer.result(poison.id)
        assert (end.finish_reason, end.error and end.error.code) == ("dead", "strikes")
        with DeadLetters(server.url) as letters:
            (letter,) = letters.find()
        assert letter.job_id == poison.id
        assert sum(line.what.startswith("strike") for line in letter.history) == STRIKES
