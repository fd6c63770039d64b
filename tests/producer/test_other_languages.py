"""ARCHITECTURE.md's way to submit from any language: one call of a script that the command line prints."""

import re
import secrets
from pathlib import Path

from click.testing import CliRunner

from producer import Producer
from producer.cli import main

DOCUMENT = Path(__file__).parents[2] / "ARCHITECTURE.md"


def test_the_documented_call_submits_a_job(redis_url, redis_client, real_desk, echo_worker):
    """Keys and arguments as they stand in the document, the payload as JSON: the job is answered."""
    sha = redis_client.script_load(CliRunner().invoke(main, ["script", "enqueue"]).stdout)
    job_id = f"0.default.{secrets.token_hex(12)}"
    (call,) = re.findall(r"EVALSHA \$SHA (15 .*?)\nredis-cli", DOCUMENT.read_text(), re.DOTALL)
    text = call.replace("\\\n", " ").replace("$ID", job_id).replace("T:", "{slip:test:0}:")
    words = re.findall(r"'([^']*)'|(\S+)", text)
    count, *rest = [quoted or plain for quoted, plain in words]
    assert redis_client.evalsha(sha, int(count), *rest) == [b"ok"]
    with Producer(redis_url, queue="test") as producer:
        assert producer.result(job_id, timeout=20).text == "count from 3 to 17 "


def test_an_unknown_script_is_named():
    """With those there are."""
    ran = CliRunner().invoke(main, ["script", "frobnicate"])
    assert ran.exit_code == 2
    assert "enqueue" in ran.stderr


def test_what_operators_set_is_shown_and_checked(redis_url, real_desk):
    """NAME=VALUE sets, NAME= unsets, a wrong name or value is refused with what there is."""

    def run(*arguments):
        return CliRunner(env={"SLIPSTREAM_REDIS": redis_url, "SLIPSTREAM_QUEUE": "other"}).invoke(main, arguments)

    assert run("control").stdout == "nothing is set\n"
    assert run("control", "max_depth=5", "big:running=2").stdout == "big:running=2\nmax_depth=5\n"
    assert run("control", "max_depth=").stdout == "big:running=2\n"
    assert run("control", "max_deth=5").exit_code == 2
    assert "whole number" in run("control", "max_depth=many").stderr
