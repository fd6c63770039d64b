"""Several redis-servers that belong together, on loopback: a primary with replica and Sentinels, or a cluster.

Goes in: how many. Comes out: a deployment that is ready, its `url` for producers and workers, and the deaths a test
needs. Short timeouts throughout, so that a failover takes about two seconds. Knows nothing of queues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import redis

from ops import redis_server
from ops.redis_server import RedisServer, RedisUnavailable

READY_WITHIN_S = 30.0
SLOTS = 16384


class Deployment:
    """Servers that are stopped together. Use as a context manager, or call `stop`."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self, **config: str) -> RedisServer:
        """One more server, which `stop` stops too."""
        settings = {name.replace("_", "-"): value for name, value in config.items()}
        return self._stack.enter_context(redis_server.start(config=settings))

    def keep(self, server: RedisServer) -> RedisServer:
        """Let `stop` stop this one too."""
        return self._stack.enter_context(server)

    @contextmanager
    def _stopped_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all servers and remove their directories."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class SentinelDeployment(Deployment):
    """A primary, a replica, and Sentinels that make the replica the primary when that is gone."""

    SERVICE = "queue"

    def __init__(self, sentinels: int, down_after_ms: int, password: str | None) -> None:
        super().__init__()
        self._password = password
        with self._stopped_if_it_fails():
            own = {"repl_diskless_sync": "yes", "repl_diskless_sync_delay": "0"}
            self.primary, self.replica = self.start(**own), self.start(**own)
            _ask(self.replica, "REPLICAOF", "127.0.0.1", self.primary.port)
            self.sentinels = [self._sentinel(sentinels // 2 + 1, down_after_ms) for _ in range(sentinels)]
            _wait(lambda: _is_synced(self.replica), "the replica is in sync")
            _wait(lambda: all(map(self._knows_all, self.sentinels)), "the Sentinels know each other")

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        login = f"?sentinel_password={self._password}" if self._password else ""
        return f"redis+sentinel://{hosts}/{self.SERVICE}/0{login}"

    def wait_for_failover(self) -> None:
        """Return once the replica takes writes and the Sentinels say so."""
        _wait(lambda: _ask(self.replica, "INFO", "replication")["role"] == "master", "the replica was made primary")
        _wait(lambda: all(self._named_by(s) == self.replica.port for s in self.sentinels), "all Sentinels name it")

    def _sentinel(self, quorum: int, down_after_ms: int) -> RedisServer:
        password = self._password
        lines = [
            "bind 127.0.0.1",
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.primary.port} {quorum}",
            f"sentinel down-after-milliseconds {self.SERVICE} {down_after_ms}",
            f"sentinel failover-timeout {self.SERVICE} 4000",
        ]
        lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"] if password else []
        login = ("default", password) if password else None
        return self.keep(redis_server.launch({}, conf="\n".join(lines) + "\n", sentinel=True, login=login))

    def _knows_all(self, sentinel: RedisServer) -> bool:
        others = len(self.sentinels) - 1
        known = _ask(sentinel, "SENTINEL MASTER", self.SERVICE, password=self._password)
        return bool(known["num-other-sentinels"] == others and known["num-slaves"] == 1)

    def _named_by(self, sentinel: RedisServer) -> int:
        named = _ask(sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME", self.SERVICE, password=self._password)
        return int(named[1]) if named else 0


class ClusterDeployment(Deployment):
    """Nodes that share the slots evenly, the first ones with a replica each where there are `replicas`."""

    def __init__(self, nodes: int, replicas: int, node_timeout_ms: int) -> None:
        super().__init__()
        config = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": str(node_timeout_ms),
            "repl_diskless_sync": "yes",
            "repl_diskless_sync_delay": "0",
        }
        with self._stopped_if_it_fails():
            self.nodes = [self.start(**config) for _ in range(nodes)]
            self.replicas = [self.start(**config) for _ in range(replicas)]
            for number, node in enumerate(self.nodes):
                _ask(node, "CLUSTER SET-CONFIG-EPOCH", number + 1)
                _ask(node, "CLUSTER ADDSLOTS", *range(number * SLOTS // nodes, (number + 1) * SLOTS // nodes))
            for node in self._all[1:]:
                _ask(self._all[0], "CLUSTER MEET", "127.0.0.1", node.port)
            _wait(lambda: all(map(self._is_whole, self._all)), "all nodes know all slots")
            for replica, node in zip(self.replicas, self.nodes, strict=False):
                _ask(replica, "CLUSTER REPLICATE", self.id_of(node))
            _wait(lambda: all(map(_is_synced, self.replicas)), "the replicas are in sync")

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def _all(self) -> list[RedisServer]:
        return [*self.nodes, *self.replicas]

    def id_of(self, node: RedisServer) -> str:
        """What the cluster calls a node."""
        myself: bytes = _ask(node, "CLUSTER MYID")
        return myself.decode()

    def node_of(self, slot: int) -> RedisServer:
        """Who serves a slot, as the first node that answers has it."""
        for first, last, (_, port, *_), *_ in _ask(self._first_alive, "CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self._all if node.port == port)
        raise RedisUnavailable(f"no node serves slot {slot}")

    def start_moving(self, slot: int, to: RedisServer) -> None:
        """From now on the slot's keys may be on either side, and clients are sent on by ASK."""
        source = self.node_of(slot)
        _ask(to, "CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        _ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(to))

    def move_keys(self, slot: int, to: RedisServer) -> None:
        """Bring over all keys the slot has now."""
        source = self.node_of(slot)
        while keys := _ask(source, "CLUSTER GETKEYSINSLOT", slot, 100):
            _ask(source, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)

    def finish_moving(self, slot: int, to: RedisServer) -> None:
        """The slot is `to`'s, and clients are sent on by MOVED."""
        for node in (to, *(other for other in self.nodes if other is not to)):
            _ask(node, "CLUSTER SETSLOT", slot, "NODE", self.id_of(to))

    def wait_for_failover(self, replica: RedisServer) -> None:
        """Return once `replica` serves its dead primary's slots."""
        _wait(lambda: _ask(replica, "INFO", "replication")["role"] == "master", "the replica was made primary")
        _wait(lambda: self._is_whole(replica), "the cluster is whole again")

    @property
    def _first_alive(self) -> RedisServer:
        return next(node for node in self._all if node.is_running)

    def _is_whole(self, node: RedisServer) -> bool:
        told = _ask(node, "CLUSTER INFO")
        return bool(told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) >= len(self._all))


def start_sentinel(
    sentinels: int = 3, *, down_after_ms: int = 400, sentinel_password: str | None = None
) -> SentinelDeployment:
    """Start a primary, its replica and Sentinels. Takes two seconds, most of it until the Sentinels have met."""
    return SentinelDeployment(sentinels, down_after_ms, sentinel_password)


def start_cluster(nodes: int = 3, *, replicas: int = 0, node_timeout_ms: int = 1000) -> ClusterDeployment:
    """Start a cluster, without redis-cli: slots by hand, the nodes introduced to each other. Takes two seconds."""
    return ClusterDeployment(nodes, replicas, node_timeout_ms)


def _is_synced(replica: RedisServer) -> bool:
    return bool(_ask(replica, "INFO", "replication").get("master_link_status") == "up")


def _ask(server: RedisServer, *command: Any, password: str | None = None) -> Any:
    with redis.Redis(port=server.port, password=password, socket_timeout=5) as client:
        return client.execute_command(*command)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            if condition():
                return
        except (redis.ConnectionError, redis.TimeoutError, KeyError) as error:
            if time.monotonic() > deadline:
                raise RedisUnavailable(f"waited {READY_WITHIN_S:g} s in vain until {what}: {error}") from error
        if time.monotonic() > deadline:
            raise RedisUnavailable(f"waited {READY_WITHIN_S:g} s in vain until {what}")
        time.sleep(0.02)
