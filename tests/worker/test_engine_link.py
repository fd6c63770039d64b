"""The engine's process as the loop sees it: made, unable, gone, deaf."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.worker.process import DEMO_MODEL
from worker.engine_link import EngineLink, EngineLost, EngineUnable
from worker.settings import ENGINE_FIELDS, Settings

PARAMS = {
    "max_tokens": 4,
    "min_tokens": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "seed": 0,
    "stop_ids": frozenset(),
}


def start(patience_s: float = 15.0, **settings: Any) -> EngineLink:
    """An engine on the demo model; flags are its settings."""
    defaults = {name: Settings.model_fields[name].default for name in ENGINE_FIELDS}
    return EngineLink(str(DEMO_MODEL), {**defaults, "threads": 1, **settings}, patience_s)


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, EngineLink]]:
    """One for each test that wants one. They start side by side, since most of a start is one core's imports."""
    made = {
        "spoken to": start(),
        "killed": start(),
        "deaf": start(patience_s=0.3),
        "unable": start(max_len=5000),
    }
    yield made
    for engine in made.values():
        engine.close()
        assert not psutil.pid_exists(engine.pid)


def test_a_sequence_goes_in_and_its_tokens_come_out(engines):
    """Ready, then a message a step, the last with the reason."""
    engine = engines["spoken to"]
    assert engine.wait_ready()["max_len"] == 1024
    engine.add(7, [1, 9, 9], [], PARAMS, 0)
    emitted, reason = [], None
    while reason is None:
        kind, emissions, _ = engine.receive()
        assert kind == "step"
        ((sequence_id, token_ids, reason, error, *_),) = emissions
        assert (sequence_id, error) == (7, None)
        emitted += token_ids
    assert (len(emitted), reason) == (4, "length")


def test_a_killed_engine_is_lost_and_says_how(engines):
    """Whether one listens or speaks to it."""
    engine = engines["killed"]
    engine.wait_ready()
    psutil.Process(engine.pid).kill()
    with pytest.raises(EngineLost, match="killed by SIGKILL"):
        engine.receive()
    with pytest.raises(EngineLost, match="killed by SIGKILL"):
        engine.add(1, [1], [], PARAMS, 0)


def test_an_engine_that_takes_nothing_in_is_lost_and_ended(engines):
    """A process that hangs, and a long prompt after another: the loop is not held up for longer than its patience."""
    engine = engines["deaf"]
    engine.wait_ready()
    psutil.Process(engine.pid).suspend()

    def add_many():
        for sequence_id in range(1000):
            engine.add(sequence_id, [100_000] * 1000, [], PARAMS, 0)

    with pytest.raises(EngineLost, match=r"has not listened for 0.3 s: it hangs"):
        add_many()
    assert not psutil.pid_exists(engine.pid)


def test_an_engine_that_can_not_be_made_says_why_in_a_line(engines):
    """What it says is for people; where it came from is there for those who ask."""
    with pytest.raises(EngineUnable, match=r"^max_len must be at most the model's 1024; got 5000$") as unable:
        engines["unable"].wait_ready()
    assert "Traceback" in unable.value.traceback


def test_an_engine_that_is_not_wanted_any_more_ends_while_it_loads():
    """A worker that can't start does not wait for a model that nobody will use."""
    engine = start()
    engine.close()
    assert not psutil.pid_exists(engine.pid)
    with pytest.raises(EngineLost, match="killed by SIGKILL"):  # it would have ended by itself, had it been waited for
        engine.receive()
