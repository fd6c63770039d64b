"""The engine in a process of its own, spoken to over a socketpair as worker/engine_link.py does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import EngineOf
from tests.models.checkpoints import random_prompts
from worker.engine import SequenceParams

PROMPTS = random_prompts((5, 40, 17))
SETTINGS = {"threads": 1, "page_size": 16, "max_rows": 2, "token_budget": 32}
ROOT = Path(__file__).parents[2]
LONG_S = 60.0  # a message that takes longer is not coming

Message = tuple[Any, ...]


class Served:
    """A child process and this end of its connection."""

    def __init__(self, **popen: Any) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker.engine.serve", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                **popen,
            )
        self.connection = Connection(ours.detach())

    def send(self, *message: Any) -> None:
        self.connection.send(message)

    def add(self, id_: int, prompt: list[int], params: SequenceParams, output: list[int] | None = None) -> None:
        self.send("add", id_, prompt, output or [], asdict(params), 0)

    def receive(self) -> Message:
        assert self.connection.poll(LONG_S), f"no message within {LONG_S:g} s"
        message: Message = self.connection.recv()
        return message

    def steps_until(self, *ids: int) -> dict[int, tuple[list[int], str | None, str | None]]:
        """Read steps until each of ids has ended: tokens, reason and error by id."""
        got: dict[int, tuple[list[int], str | None, str | None]] = {}
        while not all(id_ in got and got[id_][1] for id_ in ids):
            kind, emissions, _ = self.receive()
            assert kind == "step"
            for id_, token_ids, reason, error, *_ in emissions:
                assert id_ not in got or got[id_][1] is None, "a token after the end"
                got[id_] = (got.get(id_, ([],))[0] + token_ids, reason, error)
        return got

    def end(self) -> int:
        self.connection.close()
        return self.process.wait(LONG_S)


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Served]]:
    """start(...) a process; what still runs at the end is killed."""
    started: list[Served] = []

    def make(**popen: Any) -> Served:
        started.append(Served(**popen))
        return started[-1]

    yield make
    for served in started:
        served.process.kill()
        served.process.wait()


@pytest.fixture(scope="module")
def served(start: Callable[..., Served], model: Path) -> Served:
    """One that is ready, for the tests that leave it so."""
    served = start()
    served.send("config", {"model": str(model), "settings": SETTINGS})
    kind, described = served.receive()
    assert kind == "ready"
    assert described["max_rows"] == 2
    assert described["max_len"] == 1024
    assert described["vocab_size"] == 320
    assert described["import_s"] > 0.1  # torch alone takes longer
    assert described["load_s"] > 0
    return served


def test_sequences_come_back_as_steps_to_their_ends(served: Served, engine_of: EngineOf):
    """Three on two rows: each its own tokens, in order, and the reason; plain values only."""
    params = [SequenceParams(9), SequenceParams(4, temperature=1.0, seed=3), SequenceParams(6)]
    for id_, (prompt, own) in enumerate(zip(PROMPTS, params, strict=True)):
        served.add(id_, prompt, own)
    got = served.steps_until(0, 1, 2)
    expected = engine_of(**SETTINGS).generate(PROMPTS, params)
    assert [got[id_] for id_ in range(3)] == [(completion.token_ids, "length", None) for completion in expected]
    assert all(type(token) is int for text, *_ in got.values() for token in text)


def test_each_step_says_how_full_the_engine_is(served: Served):
    """Rows, pages and counters as plain numbers."""
    served.add(0, PROMPTS[0], SequenceParams(1))
    kind, emissions, load = served.receive()
    assert (kind, len(emissions)) == ("step", 1)
    assert (load["running"], load["waiting"]) == (0, 0)
    assert load["free_pages"] > 0
    assert load["steps"] >= 1


def test_what_can_never_run_is_refused_and_the_rest_goes_on(served: Served):
    """Id, field and message come back; the neighbour's tokens too."""
    served.add(5, [], SequenceParams(3))
    served.add(6, PROMPTS[0], SequenceParams(3, temperature=float("nan")))
    served.add(7, PROMPTS[0], SequenceParams(3))
    assert served.receive() == ("refused", 5, "prompt", "prompt: is empty; give at least one token")
    kind, id_, field, message = served.receive()
    assert (kind, id_, field) == ("refused", 6, "temperature")
    assert message.startswith("temperature: must be a number")
    assert len(served.steps_until(7)[7][0]) == 3


def test_a_resumed_sequence_sends_only_what_is_new(served: Served):
    """With three of eight tokens given, five come."""
    served.add(0, PROMPTS[0], SequenceParams(8))
    whole = served.steps_until(0)[0][0]
    served.add(1, PROMPTS[0], SequenceParams(8), output=whole[:3])
    assert served.steps_until(1)[1] == (whole[3:], "length", None)


def test_who_asks_for_log_probabilities_gets_them_as_plain_values(served: Served, engine_of: EngineOf):
    """With its tokens, beside one that asks for none and gets None."""
    params = [SequenceParams(1, logprobs=3), SequenceParams(1)]
    for id_, own in enumerate(params):
        served.add(id_, PROMPTS[id_], own)
    told: dict[int, object] = {}
    while len(told) < 2:
        told |= {id_: logprobs for id_, *_, logprobs in served.receive()[1]}
    expected = engine_of(**SETTINGS).generate(PROMPTS[:2], params)
    assert [told[0], told[1]] == [expected[0].logprobs, None]


def test_a_cancelled_sequence_sends_nothing_more(served: Served):
    """Ids that are not there are passed over; what comes after is served as before."""
    served.add(0, PROMPTS[0], SequenceParams(900))
    served.receive()
    served.send("cancel", [0, 77])
    served.add(1, PROMPTS[0], SequenceParams(2))
    after_cancel = []
    while not after_cancel or after_cancel[-1][0][2] is None:
        _, emissions, load = served.receive()
        if any(id_ == 1 for id_, *_ in emissions):
            assert [id_ for id_, *_ in emissions] == [1]
            after_cancel.append(emissions)
    assert len(after_cancel) == 2
    assert load["running"] == 0


def test_signals_are_left_to_the_loop(served: Served):
    """Ctrl-C in a terminal reaches the child too: it goes on, and its other end decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(served.process.pid, number)
    served.add(0, PROMPTS[0], SequenceParams(2))
    assert len(served.steps_until(0)[0][0]) == 2
    assert served.process.poll() is None


def test_hanging_up_ends_the_process_also_in_the_middle_of_work(
    served: Served, start: Callable[..., Served], model: Path
):
    """Exit code 0, nothing said."""
    busy = start(stderr=subprocess.PIPE, text=True)
    busy.send("config", {"model": str(model), "settings": SETTINGS})
    assert busy.receive()[0] == "ready"
    for id_ in range(4):
        busy.add(id_, PROMPTS[id_ % 3], SequenceParams(900))
    busy.receive()
    assert busy.end() == 0
    assert busy.process.stderr is not None
    assert busy.process.stderr.read() == ""
    assert served.end() == 0


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"model": "/nowhere", "settings": {}}, "model directory /nowhere does not exist"),
        ({"model": "/nowhere", "settings": {"page_size": 3}}, "page_size must be one of"),
    ],
    ids=["model", "setting"],
)
def test_an_engine_that_cannot_be_made_says_why_and_ends(
    start: Callable[..., Served], wanted: dict[str, Any], says: str
):
    """One line for people, the traceback for those who ask."""
    served = start()
    served.send("config", wanted)
    kind, message, traceback = served.receive()
    assert kind == "unable"
    assert message.startswith(says)
    assert "\n" not in message
    assert traceback.startswith("Traceback")
    assert served.process.wait(LONG_S) == 0
