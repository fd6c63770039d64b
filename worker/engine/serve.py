"""The engine in a process of its own: plain values come in and go out over one connection.

    in   ("config", {model, settings})                                      first, once
         ("add", id, prompt ids, output ids, {SequenceParams' fields}, priority)
         ("cancel", [id, ...])
    out  ("ready", {what the loop needs to know})  or  ("unable", message, traceback)
         ("refused", id, field, message)                                    an add that can never run here
         ("step", [(id, token ids, reason or None, error or None, cached prompt tokens,
                 log-probabilities of the tokens or None), ...], {how full})

The other side hanging up ends this process. When it does not read, sending blocks and with it decoding: what can't be
published is bounded by the connection's buffer and the reader's own limit.

A process, not a thread: torch gives up the interpreter's lock at each of a step's hundreds of small operations, and a
thread that does other work gets in between (ops/bench/LOG.md has the figures).
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import threading
import time
import traceback
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from worker.engine import ConfigError, Engine, EngineConfig, SequenceParams, SlowerBackend, Unservable
from worker.models.errors import ModelError

Message = tuple[Any, ...]


def serve(connection: Connection) -> None:
    """Load the model that the first message names, then step for as long as the other side listens."""
    _, wanted = connection.recv()
    import_s, began = _age_s(), time.perf_counter()
    try:
        engine = Engine.from_pretrained(wanted["model"], EngineConfig(**wanted["settings"]))
    except (ConfigError, ModelError) as error:
        connection.send(("unable", str(error), traceback.format_exc()))
        return
    except Exception as error:  # an allocator's, a file's, a library's: nothing runs yet, so one line says it as well
        first = next(iter(str(error).splitlines()), "")
        message = f"the model can't be loaded: {type(error).__name__}: {first}"
        connection.send(("unable", message, traceback.format_exc()))
        return
    gc.freeze()  # what was loaded stays: a collection that looks at torch's modules takes milliseconds of a step
    took = {"import_s": round(import_s, 2), "load_s": round(time.perf_counter() - began, 3)}
    connection.send(("ready", {**engine.describe(), **took}))
    inbound: SimpleQueue[Message | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbound), daemon=True).start()
    _step_on(engine, connection, inbound)


def _age_s() -> float:
    """Seconds since this process began: nearly all of them went into imports."""
    began_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")


def _receive(connection: Connection, inbound: SimpleQueue[Message | None]) -> None:
    """Take messages in as they come, so that the other side never waits for a step; None at the end."""
    try:
        while True:
            inbound.put(connection.recv())
    except (EOFError, OSError):
        inbound.put(None)


def _step_on(engine: Engine, connection: Connection, inbound: SimpleQueue[Message | None]) -> None:
    while True:
        while not engine.has_work or not inbound.empty():
            message = inbound.get()
            if message is None:
                return
            _obey(engine, connection, message)
        output = engine.step()
        emissions = [
            (e.id, e.token_ids, e.reason and e.reason.value, e.error, e.cached_tokens, e.logprobs)
            for e in output.emissions
        ]
        connection.send(("step", emissions, engine.load()))


def _obey(engine: Engine, connection: Connection, message: Message) -> None:
    match message:
        case ("add", id_, prompt, output, params, priority):
            try:
                engine.add(id_, prompt, SequenceParams(**params), output=output, priority=priority)
            except Unservable as error:
                connection.send(("refused", id_, error.field, str(error)))
        case ("cancel", ids):
            for id_ in ids:
                engine.cancel(id_)


def main() -> None:
    """The program the loop starts: `python -m worker.engine.serve --fd N`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="the connection's file descriptor")
    connection = Connection(parser.parse_args().fd)
    warnings.simplefilter("ignore", SlowerBackend)  # the loop says it in its log
    for name in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C reaches us too; the loop decides what follows
        signal.signal(name, signal.SIG_IGN)
    with suppress(BrokenPipeError, ConnectionResetError):  # the loop is gone, and so is whoever would read what we say
        serve(connection)
    os._exit(0)  # there is nothing to save, and torch takes a second or two to take leave


if __name__ == "__main__":
    main()
