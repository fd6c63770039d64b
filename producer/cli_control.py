"""`slipstream control` and `slipstream script`: what operators set for a queue, and the scripts for other languages."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import click

from producer.calls.script import script as read_script
from producer.cli_setup import QueueCommand, Setup
from producer.connection import connect, speaking_to
from producer.errors import InvalidJob
from producer.keys import TENANT, Keys

SETTINGS = {
    "paused": "1: nothing is given to workers",
    "max_depth": "live jobs a partition may hold",
    "max_bytes": "bytes of payloads that live jobs of a partition may hold",
    "max_age": "ms a job may live",
    "tenant_window": "a tenant's jobs that may stand on the lanes unclaimed",
    "tenant_running": "a tenant's jobs on lanes and with workers",
    "tenant_queued": "a tenant's jobs that may wait",
}
_OF_A_TENANT = re.compile(rf"{TENANT.pattern}:(running|queued)")


@click.command(cls=QueueCommand)
@click.argument("settings", nargs=-1)
def control(setup: Setup, settings: tuple[str, ...]) -> None:
    """Show what is set for a queue, or set it: NAME=VALUE, and NAME= for the default again.

    \b
    paused=1           nothing is given to workers
    max_depth=N        live jobs a partition may hold
    max_bytes=N        bytes of their payloads
    max_age=MS         how long a job may live
    tenant_window=N    a tenant's jobs that may stand on the lanes unclaimed
    tenant_running=N   a tenant's jobs on lanes and with workers; for one tenant: <tenant>:running=N
    tenant_queued=N    a tenant's jobs that may wait; for one tenant: <tenant>:queued=N
    """
    changes = dict(_change(text) for text in settings)
    redis = connect(setup.url)
    with speaking_to(setup.url):
        found: dict[str, str] = {}
        for partition in range(setup.partitions):
            key = Keys(setup.queue, partition).control
            for name, value in changes.items():
                redis.hset(key, name, value) if value is not None else redis.hdel(key, name)
            answer: Any = redis.hgetall(key)
            found |= {name.decode(): value.decode() for name, value in answer.items()}
    setup.say("\n".join(f"{name}={value}" for name, value in sorted(found.items())) or "nothing is set", **found)


@click.command()
@click.argument("name")
def script(name: str) -> None:
    """Print a Lua script of the protocol, for SCRIPT LOAD by a client in another language."""
    names = sorted(file.name.removesuffix(".lua") for file in (resources.files("producer") / "scripts").iterdir())
    if name not in names or name == "prelude":
        raise click.BadParameter(f"expected one of {', '.join(n for n in names if n != 'prelude')}, got {name!r}")
    click.echo(read_script(name).text, nl=False)


def _change(text: str) -> tuple[str, int | None]:
    name, equals, value = text.partition("=")
    if not equals or (name not in SETTINGS and not _OF_A_TENANT.fullmatch(name)):
        raise InvalidJob("settings", text, f"NAME=VALUE with a name of {', '.join(SETTINGS)}, <tenant>:running|queued")
    if value and not value.isdigit():
        raise InvalidJob(name, value, "a whole number, or nothing for the default")
    return name, int(value) if value else None
