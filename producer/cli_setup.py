"""What every command of `slipstream` shares: where the queue is, how to answer, and how failures end."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from producer import errors
from producer.client import Producer
from producer.connection import DEFAULT_URL
from producer.protocol import FinishReason

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the job failed, or lies among the dead letters
  2    bad input: a flag, a field of the job, an id
  3    Redis does not answer, or refuses
  4    no such job, or its result is kept no longer
  5    not ended within --timeout; the job goes on
  6    the queue is full
  7    the job was cancelled, or its deadline passed
  130  interrupted; the job goes on
"""
OF_ERROR: dict[type[errors.SlipstreamError], int] = {
    errors.InvalidJob: 2,
    errors.IdempotencyConflict: 2,
    errors.RedisUnavailable: 3,
    errors.JobUnknown: 4,
    errors.ResultTimeout: 5,
    errors.QueueFull: 6,
}
OF_REASON: dict[FinishReason, int] = {"stop": 0, "length": 0, "failed": 1, "dead": 1, "cancelled": 7, "expired": 7}
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Setup:
    """Where the queue is, and how to speak to whoever called."""

    url: str
    queue: str
    partitions: int
    as_json: bool
    traceback: bool

    def open(self) -> Producer:
        """A client of the queue."""
        return Producer(self.url, queue=self.queue, partitions=self.partitions)

    def say(self, text: str, /, **fields: Any) -> None:
        """One answer on standard output: `text`, or `fields` where JSON is wanted."""
        click.echo(json.dumps(fields, ensure_ascii=False) if self.as_json else text)


SETUP = (
    click.Option(
        ["--redis", "url"],
        default=DEFAULT_URL,
        show_default=True,
        metavar="URL",
        help="redis:// or rediss://, redis+sentinel://host,host/service or redis+cluster://host,host; see README.",
        envvar="SLIPSTREAM_REDIS",
        show_envvar=True,
    ),
    click.Option(["--queue"], default="default", show_default=True, envvar="SLIPSTREAM_QUEUE", show_envvar=True),
    click.Option(
        ["--partitions"],
        type=click.IntRange(1),
        default=1,
        show_default=True,
        envvar="SLIPSTREAM_PARTITIONS",
        show_envvar=True,
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Answer in JSON, one object per line."),
    click.Option(["--traceback"], is_flag=True, help="Show where an error came from."),
)


class QueueCommand(click.Command):
    """A command with the options of SETUP, gathered in its argument `setup`, and whose failures are one line."""

    def __init__(self, name: str | None, params: list[click.Parameter], **more: Any) -> None:
        super().__init__(name, params=[*params, *SETUP], **more | {"epilog": EXIT_CODES})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn an error into its line and its exit code."""
        setup = Setup(**{field.name: ctx.params.pop(field.name) for field in dataclasses.fields(Setup)})
        ctx.params["setup"] = setup
        try:
            return super().invoke(ctx)
        except errors.SlipstreamError as error:
            if setup.traceback:
                raise
            if setup.as_json:
                setup.say("", error=type(error).__name__, message=str(error))
            click.echo(f"slipstream: {error}", err=True)
            ctx.exit(next((code for kind, code in OF_ERROR.items() if isinstance(error, kind)), 1))
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
