"""ACL users of a queue's Redis: producer, worker, reader, operator. Prints lines for its ACL file.

    python -m ops.redis.users                            what ops/redis/users.acl holds: all queues, Redis 6.2 or later
    python -m ops.redis.users --server 7                 with read-only key patterns
    python -m ops.redis.users --role reader --tenant acme --name acme-reader --password ...

A role has the commands that its scripts call, read from producer/scripts, and a few beside them; and the keys that its
scripts are given. Nobody may FLUSHALL, CONFIG SET or SHUTDOWN, and the default user is off.

A role's commands and keys are not paired up: who may XADD to one of its keys may to all. A reader has no command that
writes, so it can do no harm on 6.2 either; a producer or worker that means ill could spoil what it may touch. Put a
service of your own before producers that you don't trust.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "producer" / "scripts"
CONNECTION = ("ping", "select", "client|setname", "cluster|slots", "asking")
"""What every client says, whatever it is for; the last two in a cluster."""


@dataclass(frozen=True)
class Role:
    """Scripts that it may run, commands beside them, and names of keys: those of jobs (`<name>:<id>`), of tenants
    (`<name>:<tenant>`), and the queue's own.
    """

    scripts: tuple[str, ...]
    commands: tuple[str, ...]
    of_jobs: tuple[str, ...] = ()
    of_tenants: tuple[str, ...] = ()
    of_queue: tuple[str, ...] = ()


ROLES = {
    "producer": Role(
        ("enqueue", "stop", "status", "wake"),
        ("get", "xread"),
        ("job", "tokens", "result"),
        ("waiting", "ready", "running"),
        ("lane:*", "counts", "deadlines", "delayed", "control", "dead", "workers", "wake:*"),
    ),
    "worker": Role(
        tuple(sorted({path.stem for path in SCRIPTS.glob("*.lua")} - {"prelude", "enqueue", "requeued", "wake"})),
        ("xread",),
        of_queue=("*",),
    ),
    "reader": Role(("status",), ("get", "xread"), ("job", "tokens", "result")),
    "operator": Role(
        ("depth", "status", "workers", "stop", "enqueue", "requeued", "refill"),
        (
            *"get xread xrange xrevrange xlen xpending xinfo|stream xinfo|groups xinfo|consumers".split(),
            *"hget hgetall hset hdel zrange zcard smembers scard exists type ttl pttl scan memory|usage".split(),
            *"info dbsize slowlog latency client|list client|kill config|get acl|whoami acl|log".split(),
            *"cluster|info cluster|nodes".split(),
        ),
        of_queue=("*",),
    ),
}


def line(role: str, name: str, password: str, *, queue: str = "*", tenant: str | None = None, server: int = 6) -> str:
    """The user `name` as a line of an ACL file. `tenant`: no other's jobs. `server` 7: key patterns that only read."""
    meant = ROLES[role]
    reads_only = role == "reader" and server >= 7
    of_a_job = f":*.{tenant}.*" if tenant else ":*"
    keys = [f"{name}{of_a_job}" for name in meant.of_jobs]
    keys += [f"{name}:{tenant or '*'}" for name in meant.of_tenants]
    patterns = [f"{'%R~' if reads_only else '~'}{{slip:{queue}:*}}:{key}" for key in (*keys, *meant.of_queue)]
    commands = {*CONNECTION, *meant.commands, *(command for script in meant.scripts for command in called_by(script))}
    commands |= {"evalsha_ro", "eval_ro"} if reads_only else {"evalsha", "eval"}
    more = []
    if reads_only:  # a selector: these commands on these keys, and nowhere else
        patterns.append(f"%R~{{slip:{queue}:*}}:wake:*")
        wake = " ".join(f"+{word}" for word in sorted({"evalsha", "eval", *called_by("wake")}))
        more = [f"({wake} ~{{slip:{queue}:*}}:wake:*)"]
    words = [f"+{word}" for word in sorted(commands)]
    return " ".join([f"user {name} on >{password} resetchannels", *patterns, "-@all", *words, *more])


@cache
def called_by(script: str) -> frozenset[str]:
    """The commands a script may call, itself or through the prelude's functions; `xinfo|groups` where it matters."""
    text = (SCRIPTS / f"{script}.lua").read_text()
    functions = _functions((SCRIPTS / "prelude.lua").read_text())
    seen: set[str] = set()
    ahead = [text]
    found: set[str] = set()
    while ahead:
        body = ahead.pop()
        found |= _commands(body)
        used = {name for name in functions if name not in seen and re.search(rf"\b{name}\(", body)}
        seen |= used
        ahead += [functions[name] for name in used]
    return frozenset(found)


def _functions(prelude: str) -> dict[str, str]:
    """The prelude's functions, name to body: each begins and ends at the left margin."""
    return {match[1]: match[2] for match in re.finditer(r"^local function (\w+)(.*?)^end", prelude, re.M | re.S)}


def _commands(body: str) -> set[str]:
    body = re.sub(r"--.*", "", body)
    calls = re.findall(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?", body)
    assert len(calls) == len(re.findall(r"redis\.p?call\(", body)), f"a command that is not written out: {body}"
    return {f"{name}|{word}".lower() if name in ("XINFO", "XGROUP") else name.lower() for name, word in calls}


def users(server: int, queue: str) -> str:
    """An ACL file with a user for each role, whose password is its name: replace it."""
    lines = ["user default off resetchannels -@all"]
    lines += [line(role, role, role, server=server, queue=queue) for role in ROLES]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print ACL users for the Redis of a queue.")
    parser.add_argument("--role", choices=ROLES, help="this one user alone (default: all four, and default off)")
    parser.add_argument("--name", help="of that user (default: its role)")
    parser.add_argument("--password", help="of that user (default: its role, so replace it)")
    parser.add_argument("--tenant", help="with --role: the jobs of this tenant alone")
    parser.add_argument("--queue", default="*", help="one queue alone (default: all)")
    parser.add_argument("--server", type=int, choices=(6, 7), default=6, help="version of the server, or later")
    given = parser.parse_args()
    if given.role is None:
        sys.stdout.write(users(given.server, given.queue))
        return
    name, password = given.name or given.role, given.password or given.role
    print(line(given.role, name, password, queue=given.queue, tenant=given.tenant, server=given.server))


if __name__ == "__main__":
    main()
