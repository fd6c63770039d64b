"""Workers and engines that die or hang: another worker goes on with the same job, and its reader does not notice."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pytest

from tests.conftest import wait_for
from tests.faults.conftest import Fleet, Reader
from tests.worker.process import WorkerProcess

ENGINE_LOST = 3


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def in_mid_sentence(fleet):
    """Two workers, and a long job that one of them is writing: its reader, that worker, the other one."""

    @contextmanager
    def begin():
        fleet.of(2)
        fleet.undisturbed()
        with fleet.in_mid_sentence() as (reader,):
            first, (second,) = fleet.holder_of(reader.job)
            yield reader, first, second

    return begin


def went_on(reader, first, second):
    """Whether `second` went on where `first` had stopped."""
    assert [start.worker for start in reader.starts] == [first.name, second.name]
    return 0 < reader.starts[1].offset < 600


@dataclass(frozen=True)
class Killing:
    """Two workers with four long jobs each, of which one was killed in mid-sentence: what readers have in the end."""

    engine: int
    first: WorkerProcess
    second: WorkerProcess
    asked: Reader
    """Of a job of the first one that asks for penalties and log-probabilities."""
    others: list[Reader]
    undisturbed: Reader
    """Of a job that asks for the same, and whose worker lived."""


@pytest.fixture(scope="module")
def killing(session_fleet: tuple[Fleet, list[WorkerProcess]]) -> Killing:
    """SIGKILL. One for all that is to be seen after it, since it takes a lease and a worker's start."""
    fleet, _ = session_fleet
    fleet.of(2)
    fleet.undisturbed()
    asked = {"logprobs": 2, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
    undisturbed = fleet.submit(**asked)
    undisturbed.to_the_end()
    with fleet.slow():
        reader, *others = fleet.submit(**asked), *(fleet.submit() for _ in range(7))
        wait_for(lambda: all(one.offset > 5 for one in (reader, *others)), 60, "all jobs are in mid-sentence")
        first, (second,) = fleet.holder_of(reader.job)
        engine = first.engine_pid
        first.signal(signal.SIGKILL)
    for one in (reader, *others):
        one.to_the_end()
    return Killing(engine, first, second, reader, others, undisturbed)


def test_a_killed_workers_jobs_go_on_elsewhere_in_mid_sentence(fleet, killing, wait_until):
    """After the lease the other worker takes over, and its tokens are those the first would have made."""
    lost = [reader for reader in killing.others if reader.starts[0].worker == killing.first.name]
    assert len(lost) == 3
    for reader in lost:
        assert reader.to_the_end() == fleet.undisturbed()
        assert went_on(reader, killing.first, killing.second)
    wait_until(lambda: is_gone(killing.engine), 30, "the killed worker's engine has ended too")


def test_what_a_job_asks_for_goes_on_with_it(fleet, killing):
    """Penalties count what the first owner wrote, and log-probabilities are of every token, each once."""
    reader, tokens = killing.asked, killing.undisturbed.to_the_end()
    assert reader.to_the_end() == tokens
    assert went_on(reader, killing.first, killing.second)
    assert len(reader.logprobs) == len(tokens)
    assert reader.logprobs == killing.undisturbed.logprobs
    assert fleet.producer.result(reader.job).logprobs == tuple(reader.logprobs)


def test_every_job_is_answered_by_the_book_when_a_worker_is_killed(fleet, killing):
    """Four were the killed worker's and were delivered a second time; the other one's four were not."""
    assert [reader.to_the_end() for reader in killing.others] == [fleet.undisturbed()] * 7
    deliveries = [fleet.producer.status(reader.job).deliveries for reader in (killing.asked, *killing.others)]
    assert deliveries[0] == 2
    assert sorted(deliveries) == [1] * 4 + [2] * 4


def test_a_worker_that_loses_its_engine_hands_its_jobs_back_and_ends(fleet, in_mid_sentence):
    """SIGKILL of the engine, as the kernel does when memory runs out: exit code 3, and nobody waits for a lease."""
    with in_mid_sentence() as (reader, first, second):
        psutil.Process(first.engine_pid).kill()
        assert first.exit_code() == ENGINE_LOST

    (lost,) = first.said("engine_lost")
    assert "killed by SIGKILL (out of memory?)" in lost["error"]
    assert [line["next"] for line in first.said("job_given_up")] == ["queued"]
    assert reader.to_the_end() == fleet.undisturbed()
    assert went_on(reader, first, second)
    status = fleet.producer.status(reader.job)
    assert (status.deliveries, status.strikes) == (2, 0), "it had added tokens, so it is not to blame"


def test_an_engine_that_hangs_is_ended_within_a_lease_or_so(fleet, in_mid_sentence):
    """A step that never ends: the worker kills its engine, hands its jobs back and exits, for a fresh one to start."""
    with in_mid_sentence() as (reader, first, second):
        engine = first.engine_pid
        psutil.Process(engine).suspend()

    assert first.exit_code() == ENGINE_LOST
    assert "it hangs" in first.said("engine_lost")[-1]["error"]
    assert is_gone(engine)
    assert reader.to_the_end() == fleet.undisturbed()
    assert went_on(reader, first, second)


def test_a_worker_that_was_paused_past_its_lease_spoils_nothing(fleet, in_mid_sentence, wait_until):
    """It wakes with tokens in hand that others have published since. It is refused, and works on with new jobs."""
    with in_mid_sentence() as (reader, first, second):
        first.signal(signal.SIGSTOP)
    assert reader.to_the_end() == fleet.undisturbed()
    assert went_on(reader, first, second)

    first.signal(signal.SIGCONT)
    wait_until(
        lambda: reader.job in [line["job"] for line in first.said("job_lost")], 60, "it sees that the job is lost"
    )
    second.stop()
    assert fleet.producer.result(fleet.producer.submit(prompt="Count from 3 to 5\n"), timeout=60).text == "3 4 5"
    assert first.is_running


def test_a_start_that_takes_longer_than_a_lease_is_not_taken_for_a_hang(fleet):
    """Jobs wait while a worker loads its model, and are answered once it has."""
    fleet.of(0)
    jobs = [fleet.producer.submit(prompt="Count from 3 to 5\n") for _ in range(3)]
    fleet.of(1, "--lease-s", "1")
    assert [fleet.producer.result(job, timeout=60).text for job in jobs] == ["3 4 5"] * 3
    fleet.of(0)
