"""`slipstream dead`: the dead letters of a queue, for operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from producer import wire
from producer.calls.dead import DeadLetter
from producer.cli_setup import QueueCommand, Setup
from producer.dead_letters import DeadLetters
from producer.errors import InvalidJob, Undecodable

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def age(text: str) -> float:
    """Seconds of a length of time: 90s, 15m, 2h, 7d; a bare number is seconds."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError:
        raise click.BadParameter(f"expected 90s, 15m, 2h or 7d, got {text!r}") from None


WHICH = (
    click.Argument(["jobs"], nargs=-1),
    click.Option(["--error", "why"], help="Only those that died of this, or have it in their history."),
    click.Option(["--older-than", "older_than_s"], type=age, help="Only those that lie there for longer: 2h, 7d."),
    click.Option(["--newer-than", "newer_than_s"], type=age, help="Only those that lie there not as long."),
    click.Option(["--all", "everything"], is_flag=True, help="All of them; else requeue and purge want to know which."),
)


class LettersCommand(QueueCommand):
    """A command on letters that the options of WHICH choose."""

    def __init__(self, name: str | None, params: list[click.Parameter], **more: Any) -> None:
        super().__init__(name, params=[*WHICH, *params], **more)


@click.group()
def dead() -> None:
    """Jobs that nobody answers any more: look at them, submit them anew, forget them."""


@dead.command("list", cls=LettersCommand)
def list_(setup: Setup, everything: bool, **which: Any) -> None:
    """List dead letters, the oldest first."""
    with _letters(setup) as letters:
        for letter in letters.find(which.pop("jobs"), **which):
            last = letter.history[-1].what if letter.history else ""
            setup.say(f"{letter.job_id}  {_when(letter.died_at)}  {letter.why}  {last}", **_fields(letter))


@dead.command(cls=QueueCommand)
@click.argument("job")
def show(setup: Setup, job: str) -> None:
    """Show one dead letter whole: its job and all that happened to it."""
    with _letters(setup) as letters:
        letter = letters.get(job)
    asked = _asked(letter)
    lines = [f"job      {letter.job_id}", f"died     {_when(letter.died_at)}", f"of       {letter.why}"]
    lines += [f"asked    {name} = {value!r}" for name, value in asked.items()]
    lines += [f"history  {_when(line.at)}  at token {line.offset}: {line.what}" for line in letter.history]
    setup.say("\n".join(lines), **_fields(letter), job=asked)


@dead.command(cls=LettersCommand)
def requeue(setup: Setup, everything: bool, **which: Any) -> None:
    """Submit jobs anew, each as a new job with a fresh deadline that names the old one."""
    _want_some(everything, which)
    with _letters(setup) as letters:
        for letter in list(letters.find(which.pop("jobs"), **which)):
            try:
                new_id = letters.requeue(letter)
            except Undecodable as error:
                click.echo(f"slipstream: {letter.job_id} stays: {error}", err=True)
                continue
            setup.say(f"{letter.job_id} requeued as {new_id}", job_id=letter.job_id, requeued_as=new_id)


@dead.command(cls=LettersCommand)
def purge(setup: Setup, everything: bool, **which: Any) -> None:
    """Forget dead letters for good."""
    _want_some(everything, which)
    with _letters(setup) as letters:
        gone = sum(letters.purge(letter) for letter in list(letters.find(which.pop("jobs"), **which)))
    setup.say(f"{gone} purged", purged=gone)


@contextmanager
def _letters(setup: Setup) -> Iterator[DeadLetters]:
    with DeadLetters(setup.url, queue=setup.queue, partitions=setup.partitions) as letters:
        yield letters


def _want_some(everything: bool, which: dict[str, Any]) -> None:
    if not everything and not any(which.values()):
        raise InvalidJob("jobs", "none", "ids, --error, --older-than, --newer-than or --all")


def _asked(letter: DeadLetter) -> dict[str, Any]:
    """What the job asked for, or why that can't be read."""
    try:
        return wire.decode_job(letter.payload, letter.job_id).model_dump(mode="json", exclude_defaults=True)
    except Undecodable as error:
        return {"payload": f"{len(letter.payload)} bytes: {error}"}


def _fields(letter: DeadLetter) -> dict[str, Any]:
    history = [{"at": line.at, "offset": line.offset, "what": line.what} for line in letter.history]
    return {"job_id": letter.job_id, "died_at": letter.died_at, "why": letter.why, "history": history}


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
