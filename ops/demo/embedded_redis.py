"""A Redis without a redis-server: fakeredis behind a TCP port of its own, for machines that have no other.

As a program it prints its port and serves until it is ended. RESP2 alone, one thread a connection, nothing kept.
fakeredis' own TcpFakeServer is not used: 2.40 hangs up after each error it answers, NOSCRIPT among them, and breaks off
replies that are larger than a socket's buffer.
"""

from __future__ import annotations

import re
import socketserver
import sys
from io import BufferedIOBase
from typing import Any, cast

import fakeredis
from redis.exceptions import NoScriptError, ResponseError

VERSION = (6, 2)  # the floor of the protocol, so that nothing newer is leaned on


class EmbeddedRedis(socketserver.ThreadingTCPServer):
    """Serves one store, empty at first, on a free loopback port. Start it with `serve_forever`."""

    daemon_threads = True  # a client that waits in a blocking read does not hold up the end

    def __init__(self) -> None:
        self.store = fakeredis.FakeServer(version=VERSION)
        super().__init__(("127.0.0.1", 0), _Client)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])


class _Client(socketserver.StreamRequestHandler):
    """One connection: whole commands in, replies out, in order."""

    def handle(self) -> None:
        store = cast("EmbeddedRedis", self.server).store
        connection = fakeredis.FakeRedis(server=store, protocol=2).connection_pool.get_connection()
        while (command := _read_command(self.rfile)) is not None:
            try:
                connection.send_command(*command)
                reply = connection.read_response()
            except ResponseError as error:
                reply = error
            self.wfile.write(_encode(reply))


def _read_command(stream: BufferedIOBase) -> list[bytes] | None:
    """The next command, an array of strings; None where the client has hung up."""
    words: list[bytes] = []
    head = stream.readline()
    for _ in range(int(head[1:] or 0)):
        length = int(stream.readline()[1:] or 0)
        words.append(stream.read(length + 2)[:length])
    return words or None


def _encode(reply: Any) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case Exception():
            return f"-{_error_line(reply)}\r\n".encode()
        case int():
            return b":%d\r\n" % reply
        case list() | tuple():
            return b"*%d\r\n%s" % (len(reply), b"".join(map(_encode, reply)))
        case _:
            text = reply if isinstance(reply, bytes) else str(reply).encode()
            return b"$%d\r\n%s\r\n" % (len(text), text)


def _error_line(error: Exception) -> str:
    """Its message, with the code in front that redis-py's parser has taken off."""
    message = " ".join(str(error).split())
    if isinstance(error, NoScriptError):
        return f"NOSCRIPT {message}"
    return message if re.match(r"[A-Z]+ ", message) else f"ERR {message}"


def main() -> None:
    with EmbeddedRedis() as server:
        print(server.port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
