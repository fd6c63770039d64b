"""The command line `slipstream`: submit a job, follow it, get its result, cancel it, look at it.

Text goes to standard output and everything about it to standard error, so that output can be piped; with --json,
standard output is one JSON object per line. Whatever goes wrong is one line and an exit code (cli_setup.py).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import click

from producer import errors
from producer.cli_control import control, script
from producer.cli_dead import age, dead
from producer.cli_setup import EXIT_CODES, OF_REASON, QueueCommand, Setup
from producer.client import Producer
from producer.keys import LANES
from producer.protocol import Ended, Event, FinishReason, Resync, Tokens
from producer.submission import JobFields


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="slipstream")
def main() -> None:
    """Generation jobs on a queue: push them, follow their tokens, get their answers."""


for command in (dead, control, script):
    main.add_command(command)


def moment(text: str) -> float:
    """Unix seconds of +90s, +15m, +2h, +7d from now, an ISO time (UTC where it says nothing else), or Unix seconds."""
    if text.startswith("+"):
        return time.time() + age(text[1:])
    with suppress(ValueError):
        return float(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"expected +30s, +2h, an ISO time or Unix seconds, got {text!r}") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


@main.command(cls=QueueCommand)
@click.argument("prompt", required=False)
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read the prompt from here.")
@click.option("--messages", metavar="JSON", help='A conversation: [{"role": "user", "content": "..."}].')
@click.option("--prompt-token-ids", metavar="JSON", help="The prompt as token ids: [1, 2, 3].")
@click.option("--stream", is_flag=True, help="Follow the tokens as they come.")
@click.option("--max-tokens", type=int)
@click.option("--min-tokens", type=int)
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--top-k", type=int, help="0 keeps all.")
@click.option("--top-p", type=float)
@click.option("--min-p", type=float)
@click.option("--repetition-penalty", type=float, help="Above 1: what prompt or answer has becomes less likely.")
@click.option("--frequency-penalty", type=float, help="Off a token's logit as often as the answer has it.")
@click.option("--presence-penalty", type=float, help="Off the logits of tokens that the answer has.")
@click.option("--logit-bias", metavar="JSON", help='Added to logits, by token id: {"17": -100}.')
@click.option("--allowed-token-id", "allowed_token_ids", type=int, multiple=True, help="Nothing but these. Repeatable.")
@click.option("--bad-word", "bad_words", multiple=True, help="Never write this text. May be given several times.")
@click.option("--logprobs", type=int, metavar="N", help="With --json: how likely each token and the N likeliest were.")
@click.option("--seed", type=int)
@click.option("--stop", multiple=True, help="End before this text. May be given several times.")
@click.option("--stop-token-id", "stop_token_ids", type=int, multiple=True, help="May be given several times.")
@click.option("--ignore-eos", is_flag=True, default=None, help="Go on past the model's end of sequence.")
@click.option("--model", help="Fail unless the workers serve this model.")
@click.option("--lane", type=click.Choice(LANES))
@click.option("--tenant")
@click.option("--result-ttl", type=float, metavar="SECONDS", help="Keep events and result this long after the end.")
@click.option("--not-before", type=moment, help="Run no earlier: +30s, +2h, an ISO time, or Unix seconds.")
@click.option("--deadline", type=moment, help="End as expired if not done by then: the same forms.")
@click.option("--idempotency-key", help="A second submit under the key, from the same tenant, is the first job.")
@click.option("--idempotency-ttl", type=float, metavar="SECONDS", help="Remember the key this long after the end.")
@click.option("--wait", type=float, default=0.0, metavar="SECONDS", help="Wait this long for room in a full queue.")
@click.option("--id", help="Your own id, <partition>.<tenant>.<random>; a second submit under it is the same job.")
def submit(setup: Setup, stream: bool, wait: float, **given: Any) -> None:
    """Submit a job and print its id, or with --stream its text.

    The prompt is PROMPT, a --file, or standard input (also PROMPT `-`); one newline at its end is not part of it.
    """
    fields = _prompt(given.pop("prompt"), given.pop("file"), given.pop("messages"), given.pop("prompt_token_ids"))
    given["logit_bias"] = _json("logit_bias", given["logit_bias"])
    fields |= {name: value for name, value in given.items() if value not in (None, ())}
    with setup.open() as producer:
        job_id = producer.submit(wait=wait, **cast("JobFields", fields))
        if not stream:
            setup.say(job_id, job_id=job_id)
            return
        if setup.as_json:
            setup.say("", kind="submitted", job_id=job_id)
        else:
            click.echo(f"job {job_id}", err=True)
        _follow(setup, producer, job_id)


@main.command(cls=QueueCommand)
@click.argument("job")
@click.option("--from-offset", type=click.IntRange(0), default=0, help="Begin after this many tokens.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait no longer for the end.")
def stream(setup: Setup, job: str, from_offset: int, timeout: float | None) -> None:
    """Print a job's text as it comes, from the beginning or an offset, to its end."""
    with setup.open() as producer:
        _follow(setup, producer, job, from_offset, timeout)


@main.command(cls=QueueCommand)
@click.argument("job")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait no longer for the end.")
def result(setup: Setup, job: str, timeout: float | None) -> None:
    """Wait for a job's end and print its whole text."""
    with setup.open() as producer:
        found = producer.result(job, timeout)
    setup.say(found.text, **found.model_dump(mode="json"))
    _end(setup, found.finish_reason, found.error.message if found.error else None)


@main.command(cls=QueueCommand)
@click.argument("job")
@click.option("--reason", default="cancelled by its producer", show_default=True, help="What readers are told.")
def cancel(setup: Setup, job: str, reason: str) -> None:
    """End a job, queued or running. One that has ended stays as it is (exit code 0 as well: it runs no more)."""
    with setup.open() as producer:
        reply = producer.cancel(job, reason)
    text = f"had ended: {reply.state}" if reply.met == "ended" else f"cancelled, was {reply.met}"
    setup.say(text, job_id=job, met=reply.met, state=reply.state)


@main.command(cls=QueueCommand)
@click.argument("job")
def status(setup: Setup, job: str) -> None:
    """Say where a job stands."""
    with setup.open() as producer:
        found = producer.status(job)
    fields = dataclasses.asdict(found)
    shown = {name: value for name, value in fields.items() if value is not None and name != "history"}
    lines = [f"{name:<11} {value}" for name, value in shown.items()]
    lines += [f"history     {line.at:.3f} at token {line.offset}: {line.what}" for line in found.history]
    setup.say("\n".join(lines), **fields)


def _prompt(prompt: str | None, file: Path | None, messages: str | None, token_ids: str | None) -> dict[str, Any]:
    """The one field of the job that says what to go on from. Raises InvalidJob."""
    if prompt == "-" or (prompt is None and not (file or messages or token_ids) and not sys.stdin.isatty()):
        prompt = _text(sys.stdin.buffer.read(), "standard input")
    if file is not None:
        if prompt is not None:
            raise errors.InvalidJob("prompt", "PROMPT and --file", "one of them")
        prompt = _text(file.read_bytes(), str(file))
    fields = {
        "prompt": prompt,
        "messages": _json("messages", messages),
        "prompt_token_ids": _json("prompt_token_ids", token_ids),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _text(read: bytes, where: str) -> str:
    try:
        return read.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise errors.InvalidJob("prompt", f"{where}: {error.reason} at byte {error.start}", "UTF-8 text") from error


def _json(field: str, text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise errors.InvalidJob(field, text, f"JSON ({error})") from error


def _follow(setup: Setup, producer: Producer, job_id: str, from_offset: int = 0, timeout: float | None = None) -> None:
    """Print a job's events until its end, and leave with the exit code of that."""
    offset = from_offset
    try:
        for event in producer.stream(job_id, from_offset, timeout=timeout):
            offset = event.offset
            if setup.as_json:
                setup.say("", **_event(event))
            elif isinstance(event, Tokens):
                click.echo(event.text, nl=False)
            elif isinstance(event, Resync):
                click.echo()
                click.echo(f"slipstream: Redis lost the latest text; from token {offset} on it reads anew:", err=True)
            if isinstance(event, Ended):
                if not setup.as_json:
                    click.echo()
                _end(setup, event.reason, event.error.message if event.error else None)
    except KeyboardInterrupt:
        resume = f"slipstream stream {job_id} --from-offset {offset}"
        click.echo(f"\nslipstream: interrupted, the job goes on; to go on reading: {resume}", err=True)
        raise


def _event(event: Event) -> dict[str, Any]:
    """An event for programs: the text of tokens in one piece."""
    fields = event.model_dump(mode="json", exclude={"pieces", "hash"})
    if fields.get("logprobs", ...) is None:
        del fields["logprobs"]
    return fields | {"text": event.text} if isinstance(event, Tokens) else fields


def _end(setup: Setup, reason: FinishReason, message: str | None) -> None:
    """Leave with the exit code of how the job ended, and say so if that was not well."""
    code = OF_REASON[reason]
    if code and not setup.as_json:
        click.echo(f"slipstream: the job ended as {reason}{f': {message}' if message else ''}", err=True)
    click.get_current_context().exit(code)


if __name__ == "__main__":
    main()
