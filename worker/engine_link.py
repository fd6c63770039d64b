"""The engine's process as the loop sees it: started, told, listened to. Plain values only; imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from producer.logprobs import Logprob
from worker.thread_env import THREAD_ENV

Emission = tuple[int, list[int], str | None, str | None, int, list[Logprob] | None]
"""A sequence's id, its new token ids, why it ended ("stop", "length", "failed") or None, the error if it failed, how
many of its prompt's tokens the prefix cache had, and where it asks for log-probabilities those of its new tokens."""


class EngineLost(Exception):
    """The engine's process is gone; says how it went."""


class EngineUnable(Exception):
    """The engine could not be made: one line for people, and the traceback for those who ask."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


class EngineLink:
    """A child process that runs worker/engine/serve.py. It ends when this end of the connection closes."""

    def __init__(self, model: str, settings: Mapping[str, Any], patience_s: float = 15.0) -> None:
        """Start it; returns at once, while it imports and loads.

        patience_s: how long a message may wait for it to listen, before it counts as hung.
        """
        self._patience_s = patience_s
        ours, theirs = socket.socketpair()
        timeval = struct.pack("@ll", *divmod(round(patience_s * 1_000_000), 1_000_000))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        with theirs:
            root = str(Path(__file__).parent.parent)
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.engine.serve", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**THREAD_ENV, **os.environ, "PYTHONPATH": path},
            )
        self.connection = Connection(ours.detach())
        self._is_ready = False
        self._send(("config", {"model": model, "settings": dict(settings)}))

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def wait_ready(self) -> dict[str, Any]:
        """What Engine.describe says, once the model is loaded. Raises EngineUnable or EngineLost."""
        match self.receive():
            case ("ready", described):
                self._is_ready = True
                return dict(described)
            case ("unable", message, traceback):
                raise EngineUnable(message, traceback)
            case other:
                raise EngineLost(f"expected ready, got {other[0]!r}")

    def add(
        self, sequence_id: int, prompt: Sequence[int], output: Sequence[int], params: Mapping[str, Any], priority: int
    ) -> None:
        """Queue a sequence; params are SequenceParams' fields. A refusal comes back as a message."""
        self._send(("add", sequence_id, list(prompt), list(output), dict(params), priority))

    def cancel(self, sequence_ids: Iterable[int]) -> None:
        """Let sequences go at the next step; those that have just ended are passed over."""
        ids = list(sequence_ids)
        if ids:
            self._send(("cancel", ids))

    def receive(self) -> tuple[Any, ...]:
        """The next message, waiting for it. Raises EngineLost."""
        try:
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError):
            raise EngineLost(self._obituary()) from None
        return message

    def close(self) -> None:
        """Hang up: the child ends after its step. Waits for it a little, then kills it; at once while it loads."""
        self.connection.close()
        try:
            self._process.wait(timeout=5 if self._is_ready else 0)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the child now, whatever it hangs in."""
        self._process.kill()
        self._process.wait()

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self.connection.send(message)
        except BlockingIOError:  # its buffer is full and it takes nothing out: only a process that hangs does so
            self.kill()
            raise EngineLost(f"the engine's process has not listened for {self._patience_s:g} s: it hangs") from None
        except OSError:
            raise EngineLost(self._obituary()) from None

    def _obituary(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            return "the engine's process hung up, but did not end"
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the engine's process was killed by {name}{hint}"
        return f"the engine's process ended with exit code {code}"
