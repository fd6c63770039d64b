"""The redis-server that tests, demo and bench start: what it promises, and that it never stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest
import redis

from ops import redis_server


@pytest.fixture
def server():
    with redis_server.start(appendonly=True, appendfsync="always") as started:
        yield started


def connect(server: redis_server.RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_a_started_server_answers_and_evicts_nothing(server):
    """Once `start` returns the server answers; it refuses writes over its memory limit rather than dropping keys."""
    with connect(server) as client:
        assert client.ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_it_says_which_server_it_is(server):
    """`find` names the version that the server itself reports."""
    with connect(server) as client:
        assert server.binary.version == client.info("server")["redis_version"]
    assert str(server.binary.path) in str(server.binary)


def test_what_was_written_to_disk_outlives_a_kill(server):
    """After SIGKILL and a restart, port and data are the same."""
    with connect(server) as client:
        client.set("key", "value")
    port, pid = server.port, server.pid
    server.kill9()
    assert not psutil.pid_exists(pid)
    server.restart()
    assert server.port == port
    with connect(server) as client:
        assert client.get("key") == b"value"


def test_a_paused_server_can_be_stopped():
    """`stop` ends a server that is held by SIGSTOP, and removes its directory."""
    server = redis_server.start()
    pid, directory = server.pid, server.directory
    psutil.Process(pid).send_signal(signal.SIGSTOP)
    server.stop()
    assert not psutil.pid_exists(pid)
    assert not directory.exists()


def test_a_given_directory_is_kept(tmp_path):
    """A directory of the caller's is still there after `stop`, and another server goes on from it."""
    with redis_server.start(directory=tmp_path, appendonly=True) as server, connect(server) as client:
        client.set("key", "value")
    with redis_server.start(directory=tmp_path, appendonly=True) as server, connect(server) as client:
        assert client.get("key") == b"value"


def test_a_setting_it_refuses_is_named():
    """A server that does not come up raises with what the server itself said."""
    with pytest.raises(redis_server.RedisUnavailable, match="maxmemory-policy"):
        redis_server.start(config={"maxmemory-policy": "sometimes"})


def test_a_server_with_a_password_is_awaited_too():
    """A server that asks for a password counts as up once it answers one who has it."""
    with redis_server.start(config={"requirepass": "secret"}) as server:
        with pytest.raises(redis.AuthenticationError), connect(server) as client:
            client.ping()
        with redis.Redis(port=server.port, password="secret") as client:
            assert client.ping()


def test_a_taken_port_is_named(server):
    """A port that the caller chose and that is taken is an error, not another port."""
    with pytest.raises(redis_server.RedisUnavailable, match="in use"):
        redis_server.start(port=server.port)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_server_dies_with_a_killed_parent(wait_until, tmp_path):
    """A parent killed with SIGKILL, which cleans nothing up, leaves no server behind."""
    program = (
        "import pathlib, sys; from ops import redis_server\n"
        "print(redis_server.start(directory=pathlib.Path(sys.argv[1])).pid, flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), 10, "the server of a killed parent is gone")
