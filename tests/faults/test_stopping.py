"""A worker that is told to stop: once, and it finishes what runs and takes nothing new; twice, and it hands over."""

from __future__ import annotations

import signal


def test_told_to_stop_a_worker_finishes_what_runs_and_takes_no_more(fleet):
    """Its running jobs end well; what waits in the queue keeps waiting, and the next worker answers it."""
    (worker,) = fleet.of(1)
    with fleet.in_mid_sentence(jobs=4) as running:
        waiting = [fleet.producer.submit(prompt="Count from 3 to 5\n") for _ in range(4)]
        worker.signal(signal.SIGTERM)
        worker.wait_for("draining")

    assert worker.exit_code() == 0
    assert [fleet.producer.status(reader.job).state for reader in running] == ["length"] * 4
    assert [len(reader.to_the_end()) for reader in running] == [600] * 4
    assert {(s.state, s.deliveries) for s in map(fleet.producer.status, waiting)} == {("queued", 0)}
    fleet.of(1)
    assert [fleet.producer.result(job, timeout=60).text for job in waiting] == ["3 4 5"] * 4


def test_told_twice_it_hands_over_in_mid_sentence(fleet):
    """Another worker goes on at the very next token. No lease has to run out, and it is not held against the job."""
    fleet.of(2)
    expected = fleet.undisturbed()
    with fleet.in_mid_sentence() as (reader,):
        first, (second,) = fleet.holder_of(reader.job)
        first.signal(signal.SIGTERM)
        first.wait_for("draining")
        first.signal(signal.SIGTERM)
        assert first.exit_code() == 0

    assert first.said("handed_back")[-1]["jobs"] == 1
    assert reader.to_the_end() == expected
    assert [start.worker for start in reader.starts] == [first.name, second.name]
    assert 0 < reader.starts[1].offset < 600
    assert fleet.producer.status(reader.job).deliveries == 1


def test_a_grace_that_is_over_is_like_being_told_twice(fleet):
    """What does not end within `--drain-grace-s` is handed over."""
    fleet.of(0)
    (hasty,) = fleet.of(1, "--drain-grace-s", "0")
    expected = fleet.undisturbed()
    with fleet.in_mid_sentence() as (reader,):
        assert hasty.stop() == 0

    fleet.of(1)
    assert reader.to_the_end() == expected
    assert fleet.producer.status(reader.job).deliveries == 1


def test_told_again_while_it_ends_it_ends_well_all_the_same(fleet, wait_until):
    """A signal that comes when all is handed over, while Python winds up, leaves the exit code what it is."""
    fleet.of(0)
    (worker,) = fleet.of(1)

    def is_gone():
        worker.signal(signal.SIGTERM)
        return not worker.is_running

    wait_until(is_gone, 60, "it has ended")
    assert worker.exit_code() == 0
