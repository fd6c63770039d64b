"""A connection on which a script can touch no key but those it declares: what a cluster may refuse is refused here."""

from __future__ import annotations

from hashlib import sha1
from secrets import token_hex
from typing import Any

import redis
from redis.crc import key_slot

from producer.cluster import key_of


class DeclaredKeys(redis.Redis):
    """Runs each script as a user who may do anything to its declared keys, and to no other.

    Redis holds the commands of a script to its user's ACL: one that reaches further fails, or is noted where it hides
    that by a pcall. On a cluster an undeclared key fails only where its slot is on another node: by luck.
    """

    def __init__(self, url: str) -> None:
        super().__init__(connection_pool=redis.ConnectionPool.from_url(url))
        self.seen: set[str] = set()
        """The SHA of each script that ran."""
        self._probe = f"probe-{token_hex(8)}"
        super().execute_command("ACL LOG", "RESET")
        super().execute_command("ACL SETUSER", self._probe, "reset", "on", "nopass", "+@all")
        self._as_probe = redis.Redis.from_url(url, username=self._probe, password="any")

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] not in ("EVALSHA", "EVAL"):
            return super().execute_command(*args, **options)
        keys = args[3 : 3 + int(args[2])]
        slots = {key_slot(key.encode()) for key in keys}
        assert len(slots) < 2, f"declared keys in {len(slots)} slots: {keys}"
        assert key_of(args) == (keys[0].encode() if keys else None)
        super().execute_command("ACL SETUSER", self._probe, "resetkeys", *(f"~{key}" for key in keys))
        answer = self._as_probe.execute_command(*args, **options)
        self.seen.add(args[1] if args[0] == "EVALSHA" else sha1(args[1].encode()).hexdigest())
        return answer

    def refusals(self) -> list[str]:
        """What a script tried and may not."""
        return [f"{entry['reason']} {entry['object']}" for entry in self.acl_log() if entry["username"] == self._probe]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        return _OneByOne(self)

    def __exit__(self, *_: object) -> None:
        self._as_probe.close()
        super().execute_command("ACL DELUSER", self._probe)
        self.connection_pool.disconnect()


class _OneByOne(redis.client.Pipeline):
    """A pipeline whose commands run one after the other, each with its own keys."""

    def __init__(self, declared: DeclaredKeys) -> None:
        super().__init__(declared.connection_pool, declared.response_callbacks, False, None)
        self._declared = declared

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self.command_stack = list(self.command_stack), []
        answers: list[Any] = []
        for args, options in commands:
            try:
                answers.append(self._declared.execute_command(*args, **options))
            except redis.ResponseError as error:
                if raise_on_error:
                    raise
                answers.append(error)
        return answers
