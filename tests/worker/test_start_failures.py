"""What keeps a worker from starting is said in one line that tells what to do, with an exit code, and no traceback.

That whatever its engine's process says becomes the worker's line is shown once (`test_weights_as_pickle_only`); what
else that process may say is heard from `worker/engine/serve.py` in this process, where torch is imported already.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest

from ops import redis_server as redis_servers
from producer import Producer
from tests.worker.process import DEMO_MODEL, WorkerProcess
from worker.engine.serve import serve
from worker.settings import read_settings

CANT_START, NO_REDIS = 1, 4
NOBODY_LISTENS = "redis://127.0.0.1:1/0"


@pytest.fixture
def refusal(redis_url: str, tmp_path: Path) -> Callable[..., str]:
    """Start a worker that can't: the one line it says. Its exit code is `code`, and its engine is gone too."""

    def refuse(*flags: str, code: int, url: str = redis_url, model: Path = DEMO_MODEL) -> str:
        worker = WorkerProcess(url, tmp_path / "worker.log", *flags, model=model)
        assert worker.exit_code(120) == code, worker.log
        assert "Traceback" not in worker.log
        (line,) = worker.log.splitlines()
        assert line.startswith("slipstream worker: ")
        return line.removeprefix("slipstream worker: ")

    return refuse


@pytest.fixture
def engine_refusal() -> Callable[..., str]:
    """Have an engine made that can't be, by a worker's flags: the one line that its process says."""

    def refuse(*flags: str, model: Path = DEMO_MODEL) -> str:
        ours, theirs = Pipe()
        with ours, theirs:
            settings = read_settings(["--model", str(model), *flags])
            ours.send(("config", {"model": settings.model, "settings": settings.engine}))
            serving = Thread(target=serve, args=(theirs,), daemon=True)
            serving.start()
            kind, message, traceback = ours.recv()
            serving.join()
        assert kind == "unable"
        assert "Traceback" in traceback
        (line,) = message.splitlines()
        return line

    return refuse


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model to damage."""
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal (Linux)."""
    (mask,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) >> (number - 1) & 1)


def change_config(model: Path, **fields: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_no_redis(refusal):
    """It waits as long as it is told to, then says where it looked."""
    said = refusal("--redis-wait-s", "0.3", url=NOBODY_LISTENS, code=NO_REDIS)
    assert said.startswith("no Redis at redis://127.0.0.1:1/0")
    assert said.endswith("start it, or correct the URL")


def test_a_wrong_password_or_none(refusal):
    """A Redis that refuses the login is not waited for, and the password is not repeated."""
    with redis_servers.start(config={"requirepass": "the-right-one"}) as server:
        with_password = server.url.replace("redis://", "redis://:a-wrong-one@")
        said = refusal("--redis-wait-s", "600", url=with_password, code=NO_REDIS)
        assert "check user and password" in said
        assert "a-wrong-one" not in said
        assert "Authentication required" in refusal("--redis-wait-s", "600", url=server.url, code=NO_REDIS)


def test_no_model_directory(refusal, tmp_path):
    """The directory that is missing is named."""
    said = refusal(model=tmp_path / "nowhere", code=CANT_START)
    assert said.startswith(f"model directory {tmp_path / 'nowhere'} does not exist")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_directory_that_lacks_a_file(refusal, model, name):
    """The file that is missing is named, with the directory that lacks it."""
    (model / name).unlink()
    said = refusal(model=model, code=CANT_START)
    assert name in said
    assert str(model) in said


def test_a_directory_that_lacks_the_weights(engine_refusal, model):
    """They are named, with the directory that lacks them."""
    (model / "model.safetensors").unlink()
    said = engine_refusal(model=model)
    assert "model.safetensors" in said
    assert str(model) in said


def test_weights_as_pickle_only(start_worker, model):
    """A pickle runs code: it is not read, and what to do instead is said; where that came from, to who asks for it."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    worker, asked = start_worker(model=model), start_worker("--traceback", model=model)
    assert worker.exit_code() == asked.exit_code() == CANT_START
    (line,) = worker.log.splitlines()
    assert line.startswith("slipstream worker: ")
    assert "found pytorch_model.bin: only safetensors are read, convert it" in line
    first, *_, last = asked.log.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", line)


def test_an_architecture_that_is_not_supported(engine_refusal, model):
    """Which one it is, and which there are."""
    change_config(model, architectures=["MambaForCausalLM"])
    said = engine_refusal(model=model)
    assert said.startswith("architecture MambaForCausalLM is not supported; supported: LlamaForCausalLM")


def test_a_page_pool_larger_than_the_memory(engine_refusal):
    """What the pool takes is said beside what there is."""
    said = engine_refusal("--num-pages", "1000000000")
    assert "not enough memory for a page pool" in said
    assert "num_pages" in said


def test_more_threads_than_cores(engine_refusal):
    """The machine's figure is in the line."""
    said = engine_refusal("--threads", "1000")
    assert said.startswith(f"threads must be between 1 and the {len(os.sched_getaffinity(0))} cores")


def test_a_token_budget_below_the_rows(engine_refusal):
    """Every row needs a token in each step."""
    said = engine_refusal("--max-rows", "16", "--token-budget", "8")
    assert said.startswith("token_budget must be at least max_rows (16)")


def test_a_token_budget_below_a_page(engine_refusal):
    """The page's size is in the line."""
    said = engine_refusal("--max-rows", "4", "--token-budget", "8")
    assert said.startswith("token_budget must be at least page_size (32)")


def test_a_kernel_cache_that_can_not_be_written_is_told_once_and_done_without(
    start_worker, redis_url, tmp_path, monkeypatch
):
    """The worker runs on torch's operations, and its log says why, and what to set."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLIPSTREAM_KERNEL_CACHE", str(tmp_path / "file" / "kernels"))
    worker = start_worker().wait_ready()
    with Producer(redis_url) as queue:
        assert queue.result(queue.submit(prompt="Count from 3 to 5\n"), timeout=60).text == "3 4 5"
    (said,) = worker.said("slower_backend")
    assert said["backend"] == "torch"
    assert "can't be written" in said["reason"]
    assert said["reason"].endswith("set SLIPSTREAM_KERNEL_CACHE")


def test_the_traceback_is_there_for_who_asks(start_worker):
    """`--traceback` shows where it came from before the line."""
    worker = start_worker("--redis-wait-s", "0", "--traceback", url=NOBODY_LISTENS)
    assert worker.exit_code() == NO_REDIS
    assert "Traceback (most recent call last)" in worker.log
    assert worker.log.splitlines()[-1].startswith("slipstream worker: ")


def test_told_to_stop_before_it_is_ready(start_worker, wait_until):
    """SIGTERM while it waits for Redis: one line, exit code 0, since nothing was lost."""
    worker = start_worker("--redis-wait-s", "600", url=NOBODY_LISTENS)
    wait_until(lambda: catches(worker.pid, signal.SIGTERM), 60, "it catches SIGTERM")
    assert worker.stop() == 0
    assert worker.log == "slipstream worker: told to stop before it was ready\n"
