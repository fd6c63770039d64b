"""llama.cpp's server, asked over HTTP on loopback. Arguments: llama-server, MODEL.gguf, threads, rows.

Token ids in, tokens streamed out, all requests at once on sockets of one thread; its client takes a little of the same
cores, as a service's would. Rows are its slots; more than 16 made it slower on two cores. It streams no token whose
text ends within a character; such tokens count when the next one comes, or at the end, and have the id -1 here.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from ops.bench.runners.answering import Stepped, serve

CONTEXT = 1152  # tokens of a slot: the longest prompt and output of the workloads
STARTS_WITHIN_S = 120.0


class LlamaCpp:
    def __init__(self, server: str, model: str, threads: int, rows: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        words = f"--host 127.0.0.1 --port {self._port} -t {threads} -tb {threads} -np {rows} -c {rows * CONTEXT}"
        words += " -b 2048 -ub 512 -cb --no-warmup --cache-ram 0 --threads-http 96"
        self._server = subprocess.Popen([server, "-m", model, *words.split()], stdout=sys.stderr)
        self._selector = selectors.DefaultSelector()
        self._unread: dict[int, bytes] = {}
        self._told: dict[int, int] = {}  # tokens of each request so far
        self._wait_until_it_answers()

    def add(self, id_: int, prompt: list[int], max_tokens: int) -> None:
        body = {"prompt": prompt, "n_predict": max_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
        body |= {"samplers": ["top_k"], "top_k": 1, "cache_prompt": False, "return_tokens": True}
        sent = json.dumps(body).encode()
        head = f"POST /completion HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(sent)}\r\n"
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + sent)
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, id_)
        self._unread[id_] = b""

    def step(self) -> dict[int, list[int]]:
        """What has come within two milliseconds."""
        new: dict[int, list[int]] = {}
        for key, _ in self._selector.select(0.002):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            came = connection.recv(1 << 20)
            *lines, self._unread[key.data] = (self._unread[key.data] + came).split(b"\n")
            events = [json.loads(line[5:]) for line in lines if line.startswith(b"data:") and b"{" in line]
            ids = [id_ for event in events for id_ in self._tokens(key.data, event)]
            if ids:
                new[key.data] = ids
            if not came:
                self._selector.unregister(connection)
                connection.close()
                if key.data not in self._told:
                    raise RuntimeError(f"llama-server answered a request with {self._unread[key.data][:500]!r}")
        return new

    def _tokens(self, id_: int, event: dict[str, Any]) -> list[int]:
        """Those that this event tells of, those untold before as -1. Raises RuntimeError for a failed answer."""
        if "tokens_predicted" not in event:
            raise RuntimeError(f"llama-server answered a request with {json.dumps(event)[:500]}")
        ids: list[int] = event.get("tokens", [])
        all_ids = event["tokens_predicted"]
        untold = all_ids - self._told.get(id_, 0) - len(ids)
        self._told[id_] = all_ids
        return [-1] * untold + ids

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(20)

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < until and self._server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as probe:
                probe.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if b" 200 " in probe.recv(200):
                    return
            time.sleep(0.05)  # it loads its model
        raise RuntimeError(f"llama-server did not answer within {STARTS_WITHIN_S:g} s; see what it said above")


def _load() -> tuple[Stepped, str]:
    server, model, threads, rows = sys.argv[1:]
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
    return LlamaCpp(server, model, int(threads), min(16, int(rows))), (said.stderr + said.stdout).split("\n")[0]


if __name__ == "__main__":
    serve("llama.cpp", _load)
