"""The worker of the bench `loop`: a program of its own, so that each measurement starts from the same place.

`--way process`: the worker as it ships, its engine in a process beside the Redis half. `--way thread`: the same two
halves over the same kind of connection, but both in this process. `--way alone`: the engine by itself, no Redis, the
same prompts: what a step takes where nothing disturbs it. Imports no torch but with the engine, as the Redis half does.

On stdout, at the end, one JSON list: for each message of the engine that was received, when it was (perf_counter, s),
the engine's counters (steps, row_steps, computed_tokens), and the CPU time of this process so far (s).
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from random import Random
from threading import Thread
from typing import Any

from worker.engine_link import EngineLink

Sample = tuple[float, int, int, int, float]
PROMPT_TOKENS = 32


def prompts(rows: int) -> list[list[int]]:
    """A prompt a row, of ids that both models know."""
    ids = Random(7)
    return [[ids.randrange(300, 500) for _ in range(PROMPT_TOKENS)] for _ in range(rows)]


def warm_up_tokens(tokens: int) -> int:
    """How long the outputs before the measured ones are: clearly shorter, since the longest stretch is what counts."""
    return max(1, tokens // 4)


def main() -> int:
    given = _arguments()
    settings = {"dtype": "bfloat16", "max_rows": given.rows, "threads": given.threads, "backend": given.backend}
    settings["max_drafts"] = 0  # one token a row and step, or steps would not compare
    samples = _alone(given, settings) if given.way == "alone" else _work(given, settings)
    json.dump(samples, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # as the engine's process does: nothing to save, and torch takes a second to take leave


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.loop_worker")
    parser.add_argument("--way", choices=("process", "thread", "alone"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of each job that is measured")
    return parser.parse_args()


def _work(given: argparse.Namespace, settings: dict[str, Any]) -> list[Sample]:
    """Serve the queue until told to stop; what was seen of the engine meanwhile."""
    from producer.connection import connect
    from worker.log import configure
    from worker.loop import Worker
    from worker.settings import read_settings
    from worker.text import TextModel

    configure("json", "warning")
    flags = [f"--model={given.model}", f"--redis={given.redis}", f"--max-rows={given.rows}"]
    engine = (EngineLink if given.way == "process" else EngineInThread)(given.model, settings)
    samples = _note_messages(engine)
    Worker(read_settings(flags), connect(given.redis), engine, TextModel.from_pretrained(given.model)).run()
    return samples


def _note_messages(engine: EngineLink) -> list[Sample]:
    """From now on, each message about a step that `engine` hands on is noted in the list."""
    samples: list[Sample] = []
    receive = engine.receive

    def receive_and_note() -> tuple[Any, ...]:
        message = receive()
        if message[0] == "step":
            samples.append(_sample(message[2]))
        return message

    engine.receive = receive_and_note  # type: ignore[method-assign]
    return samples


def _sample(load: dict[str, int]) -> Sample:
    return time.perf_counter(), load["steps"], load["row_steps"], load["computed_tokens"], time.process_time()


class EngineInThread(EngineLink):
    """EngineLink's other possibility: worker/engine/serve.py as a thread of this process."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        self._patience_s = 0.0  # no use of it: a pipe within a process has no limit to set
        self._is_ready = False
        self.connection, theirs = Pipe()
        self._thread = Thread(target=_serve, args=(theirs,), daemon=True)
        self._thread.start()
        self._send(("config", {"model": model, "settings": settings}))

    def close(self) -> None:
        """Hang up and wait for the step that runs."""
        self.connection.close()
        self._thread.join(timeout=10)

    def kill(self) -> None:
        """A thread can't be ended: this process goes, and says where it was."""
        print("loop_worker: the engine's thread hangs", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)

    def _obituary(self) -> str:
        return "the engine's thread ended"


def _serve(connection: Connection) -> None:
    from worker.engine.serve import serve

    with connection, suppress(BrokenPipeError, ConnectionResetError):
        serve(connection)


def _alone(given: argparse.Namespace, settings: dict[str, Any]) -> list[Sample]:
    """The same prompts and lengths, first to warm up, then to be measured, in a plain loop."""
    from worker.engine import Engine, EngineConfig, SequenceParams

    engine = Engine.from_pretrained(given.model, EngineConfig(**settings))
    samples: list[Sample] = []
    for tokens in (warm_up_tokens(given.tokens), given.tokens):
        for row, prompt in enumerate(prompts(given.rows)):
            engine.add(row, prompt, SequenceParams(max_tokens=tokens))
        while engine.has_work:
            engine.step()
            samples.append(_sample(engine.load()))
    return samples


if __name__ == "__main__":
    sys.exit(main())
