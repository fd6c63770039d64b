"""The command line against a real Redis: mostly within this process, and as a program where that makes a difference."""

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from producer import wire
from producer.cli import main

COMMAND = [sys.executable, "-m", "producer.cli"]


@pytest.fixture
def slipstream(redis_url):
    """`slipstream("submit", ...)`: run one command to its end, in this process."""

    def run(*arguments, stdin=""):
        return CliRunner(env=environment(redis_url)).invoke(main, arguments, input=stdin)

    return run


@pytest.fixture
def program(redis_url):
    """`program("submit", ...)`: run one command to its end, as a program."""

    def run(*arguments, stdin=b""):
        return subprocess.run(
            [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, env=environment(redis_url)
        )

    return run


def environment(redis_url):
    return {**os.environ, "SLIPSTREAM_REDIS": redis_url, "SLIPSTREAM_QUEUE": "test"}


def lines(ran):
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_submitting_and_streaming_prints_the_text(program, echo_worker):
    """Text on standard output, all else on standard error, exit 0."""
    ran = program("submit", "--stream", "one two three")
    assert (ran.stdout, ran.returncode) == (b"one two three \n", 0)
    assert ran.stderr.startswith(b"job 0.default.")


def test_submit_prints_the_id_that_the_others_take(slipstream, echo_worker):
    """submit, result, stream, status and cancel on one job."""
    job = slipstream("submit", "one two").stdout.strip()
    assert slipstream("result", job, "--timeout", "20").stdout == "one two \n"
    assert slipstream("stream", job, "--from-offset", "1").stdout == "two \n"
    status = slipstream("status", job)
    assert (status.exit_code, "state       stop" in status.stdout) == (0, True)
    assert slipstream("cancel", job).stdout == "had ended: stop\n"


def test_json_is_one_object_per_line(slipstream, echo_worker):
    """With --json every command answers in JSON on standard output."""
    submitted, *events = lines(slipstream("submit", "--stream", "--json", "one two"))
    assert submitted["kind"] == "submitted"
    assert [event["kind"] for event in events] == ["started", "tokens", "tokens", "ended"]
    assert events[2] == {"kind": "tokens", "offset": 2, "token_ids": [1], "text": "two "}
    job = submitted["job_id"]
    assert lines(slipstream("result", job, "--json"))[0]["text"] == "one two "
    assert lines(slipstream("status", job, "--json"))[0]["state"] == "stop"
    assert lines(slipstream("cancel", job, "--json")) == [{"job_id": job, "met": "ended", "state": "stop"}]
    assert lines(slipstream("submit", "a", "--json"))[0].keys() == {"job_id"}


@pytest.mark.parametrize("how", ["standard input", "a dash", "a file"])
def test_the_prompt_may_come_from_elsewhere(slipstream, echo_worker, tmp_path, how):
    """Standard input and --file are read whole, without the newline at their end."""
    if how == "a file":
        (tmp_path / "prompt").write_text("from é file\n")
        ran = slipstream("submit", "--stream", "--file", str(tmp_path / "prompt"))
    else:
        ran = slipstream("submit", "--stream", *(["-"] if how == "a dash" else []), stdin="from é file\n")
    assert ran.stdout == "from é file \n"


def test_what_is_drawn_may_be_shaped(slipstream, real_desk):
    """Penalties, bias by token id as JSON, allowed ids, bad words and log-probabilities."""
    flags = ["--repetition-penalty", "1.2", "--frequency-penalty", "0.5", "--presence-penalty", "-0.5", "--logprobs"]
    flags += ["3", "--logit-bias", '{"17": -100, "5": 2.5}', "--bad-word", "no", "--bad-word", "never"]
    slipstream("submit", "a", *flags, "--allowed-token-id", "5", "--allowed-token-id", "17")
    claim = real_desk.take("a")
    sampling = wire.decode_job(claim.payload, claim.delivery.job_id).sampling
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.2, 0.5, -0.5)
    assert (sampling.logit_bias, sampling.allowed_token_ids) == ({5: 2.5, 17: -100.0}, (5, 17))
    assert (sampling.bad_words, sampling.logprobs) == (("no", "never"), 3)
    wrong = slipstream("submit", "a", "--logit-bias", "17")
    assert (wrong.exit_code, wrong.stderr.splitlines()[-1].partition(": expected")[0]) == (2, "slipstream: logit_bias")


def test_messages_and_ids_may_be_given(slipstream, real_desk):
    """--messages and --prompt-token-ids are JSON, and reach the worker as they are."""
    slipstream("submit", "--messages", '[{"role": "user", "content": "hi"}]', "--max-tokens", "3", "--ignore-eos")
    slipstream("submit", "--prompt-token-ids", "[1, 2]", "--stop", "a", "--stop", "b")
    first, second = (
        wire.decode_job(claim.payload, claim.delivery.job_id) for claim in (real_desk.take("a"), real_desk.take("a"))
    )
    assert (first.messages[0].content, first.sampling.max_tokens, first.sampling.ignore_eos) == ("hi", 3, True)
    assert (second.prompt_token_ids, second.sampling.stop, second.sampling.ignore_eos) == ((1, 2), ("a", "b"), False)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["submit", ""], 2, "prompt: expected at least 1 character"),
        (["submit", "a", "--top-p", "nan"], 2, "top_p: expected a finite number, got nan"),
        (["submit", "a", "--temperature", "-1"], 2, "temperature"),
        (["submit", "a", "--max-tokens", "0"], 2, "max_tokens"),
        (["submit", "a", "--messages", '[{"role": "user", "content": "b"}]'], 2, "exactly one of"),
        (["submit", "--messages", "hi"], 2, "messages: expected JSON"),
        (["submit", "a", "--file", "/nowhere"], 2, "does not exist"),
        (["submit", "a", "--file", __file__], 2, "one of them"),
        (["submit", "a", "--tenant", "a b"], 2, "tenant"),
        (["submit", "a", "--lane", "urgent"], 2, "urgent"),
        (["status", "my-job"], 2, "id: expected <partition>"),
        (["status", "0.default.nobody-knows"], 4, "no job 0.default.nobody-knows"),
        (["result", "0.default.nobody-knows"], 4, "no job"),
        (["stream", "0.default.nobody-knows"], 4, "no job"),
        (["cancel", "0.default.nobody-knows"], 4, "no job"),
        (["submit", "a", "--redis", "redis://127.0.0.1:1"], 3, "no Redis at redis://127.0.0.1:1 "),
        (["submit", "a", "--redis", "ftp://somewhere"], 3, "expected a URL like redis://"),
        (["submit", "a", "--queue", "a b"], 2, "queue"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(slipstream, arguments, code, says):
    """No traceback, a message that names the culprit, and the exit code that --help lists."""
    ran = slipstream(*arguments)
    assert ran.exit_code == code
    assert says in ran.stderr
    assert ran.stdout == ""


def test_an_error_of_the_program_is_one_line(program):
    """Nothing but the line: no traceback, no warning."""
    ran = program("submit", "a", "--redis", "redis://127.0.0.1:1")
    assert ran.returncode == 3
    assert ran.stderr.startswith(b"slipstream: no Redis at redis://127.0.0.1:1 ")
    assert ran.stderr.count(b"\n") == 1


def test_errors_are_json_too(slipstream):
    """With --json an error is an object with its kind on standard output as well."""
    ran = slipstream("status", "0.default.nobody-knows", "--json")
    assert lines(ran)[0]["error"] == "JobUnknown"
    assert ran.exit_code == 4


def test_a_traceback_is_shown_to_those_who_ask(program):
    """--traceback shows where an error came from."""
    assert b"Traceback" in program("status", "0.default.nobody-knows", "--traceback").stderr


def test_a_prompt_that_is_no_text_is_refused(slipstream):
    """Bytes on standard input that are no UTF-8 are bad input, not a crash."""
    ran = slipstream("submit", stdin=b"\xff\xfe")
    assert (ran.exit_code, "UTF-8" in ran.stderr) == (2, True)


def test_bad_ends_have_codes_of_their_own(slipstream, echo_worker, real_desk):
    """1 for a failed job, 7 for a cancelled one, 5 for one that has not ended, 6 for a full queue."""
    failed = slipstream("submit", "--stream", "please fail")
    assert (failed.exit_code, "failed: the prompt says so" in failed.stderr) == (1, True)
    assert slipstream("result", failed.stderr.split()[1]).exit_code == 1
    real_desk.redis.hset(real_desk.keys.control, "max_depth", 0)
    full = slipstream("submit", "a")
    assert (full.exit_code, "the queue is full" in full.stderr) == (6, True)


def test_a_job_that_waits_times_out_and_can_be_cancelled(slipstream):
    """Without a worker: 5 for both ways of waiting, then cancel, and 7 for the result."""
    job = slipstream("submit", "a").stdout.strip()
    assert slipstream("result", job, "--timeout", "0.1").exit_code == 5
    assert slipstream("stream", job, "--timeout", "0.1").exit_code == 5
    cancelled = slipstream("cancel", job, "--reason", "too slow")
    assert (cancelled.exit_code, cancelled.stdout) == (0, "cancelled, was queued\n")
    result = slipstream("result", job)
    assert (result.exit_code, "too slow" in result.stderr) == (7, True)


def test_an_interrupted_reader_is_told_how_to_go_on(redis_url, real_desk):
    """Ctrl-C in mid-stream exits with 130, names the command to resume with, and leaves the job alone."""
    job_id = real_desk.submit()
    claim = real_desk.take("a")
    real_desk.publish(claim, "a", 0, [1, 2, 3])
    reader = subprocess.Popen(
        [*COMMAND, "stream", job_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(redis_url),
    )
    assert reader.stdout.read(6) == "1 2 3 "
    reader.send_signal(signal.SIGINT)
    _, said = reader.communicate(timeout=30)
    assert reader.returncode == 130
    assert f"slipstream stream {job_id} --from-offset 3" in said
    assert "Traceback" not in said
    assert real_desk.status(job_id).state == "running"


@pytest.mark.parametrize("how", ["text", "json"])
def test_a_reader_is_told_what_a_failover_took_back(redis_url, real_desk, how):
    """In text a line on standard error and the new text from there on; in JSON the event itself."""
    job_id = real_desk.submit()
    old = real_desk.take("a")
    real_desk.publish(old, "a", 0, [1])
    replica = {key: real_desk.redis.dump(key) for key in real_desk.redis.keys("*")}
    real_desk.publish(old, "a", 1, [2, 3])
    command = [*COMMAND, "stream", job_id, *(["--json"] if how == "json" else [])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    reader = subprocess.Popen(command, **pipes, env=environment(redis_url))
    seen = reader.stdout.read(6) if how == "text" else "".join(reader.stdout.readline() for _ in range(3))
    for key, value in replica.items():
        real_desk.redis.restore(key, 0, value, replace=True)
    real_desk.redis.client_kill_filter(_type="normal", skipme=True)
    real_desk.finish(real_desk.take_over("b"), "b", 1, [2, 9])
    out, said = reader.communicate(timeout=30)
    assert reader.returncode == 0
    if how == "text":
        assert (seen, out) == ("1 2 3 ", "\n9 \n")
        assert "from token 2 on it reads anew" in said
    else:
        events = [json.loads(line) for line in (seen + out).splitlines()]
        assert [event["kind"] for event in events] == ["started", "tokens", "tokens", "resync", "tokens", "ended"]
        assert events[3] == {"kind": "resync", "offset": 2}


def test_every_code_is_in_the_help(slipstream):
    """--help of the program and of each command lists the exit codes."""
    for arguments in (["--help"], ["submit", "--help"], ["result", "--help"]):
        assert "130  interrupted" in slipstream(*arguments).stdout
