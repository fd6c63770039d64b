"""What another service gets with `pip install slipstream`: the producer alone, enough to submit and stream."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "ops/demo/model"

SERVICE = """
import importlib.util, sys
import producer
from producer import Producer

assert "site-packages" in producer.__file__, producer.__file__
for absent in ("torch", "transformers", "numpy", "worker", "kernels"):
    assert importlib.util.find_spec(absent) is None, absent
with Producer(sys.argv[1]) as client:
    job = client.submit(prompt="Count from 3 to 7.", max_tokens=32, temperature=0.0)
    streamed = "".join(getattr(event, "text", "") for event in client.stream(job, timeout=60))
    assert streamed == client.result(job, timeout=60).text
    print(streamed)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a release would have it; hatchling is among the pins, so nothing is downloaded."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def service(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it asks for; its directory."""
    directory = tmp_path_factory.mktemp("service")
    venv.create(directory / "env", with_pip=False)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(directory / "env/bin/python"),
        "install",
        "-q",
        "--no-compile",
        str(wheel),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_the_wheel_holds_the_producer_alone(wheel: Path):
    """Every file of producer/ that git would keep is in it, the scripts and the mark of types too; nothing else is."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = (path.relative_to(ROOT).as_posix() for path in (ROOT / "producer").rglob("*") if path.is_file())
    assert inside == {name for name in there if "__pycache__" not in name}
    assert "producer/py.typed" in inside
    assert any(name.startswith("producer/scripts/") and name.endswith(".lua") for name in inside)


def test_the_wheel_promises_only_what_it_holds(wheel: Path):
    """Its metadata asks for redis, msgpack, pydantic and click, and offers the command `slipstream`."""
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(info))
        commands = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    names = {re.split(r"[^A-Za-z0-9-]", line)[0] for line in metadata.get_all("Requires-Dist", [])}
    assert names == {"redis", "msgpack", "pydantic", "click"}
    assert metadata.get_all("Provides-Extra") is None
    assert "slipstream = producer.cli:main" in commands


def test_the_command_line_runs_from_the_wheel_alone(service: Path):
    """`slipstream --help` works where nothing but the wheel is installed."""
    command = [service / "env/bin/slipstream", "--help"]
    answer = subprocess.run(command, cwd=service, capture_output=True, text=True, check=True)
    assert "submit" in answer.stdout


def test_a_service_with_only_the_wheel_submits_and_streams(service: Path, redis_url: str, no_leaked_keys: None):
    """A program in an environment without torch submits a job and reads its tokens as a real worker sends them."""
    worker = [sys.executable, "-m", "worker", "--model", str(MODEL), "--redis", redis_url]
    with subprocess.Popen(worker, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            command = [service / "env/bin/python", "-I", "-c", SERVICE, redis_url]
            answer = subprocess.run(command, cwd=service, capture_output=True, text=True, check=False, timeout=120)
        finally:
            process.terminate()
            log = process.communicate(timeout=60)[0]
    assert answer.returncode == 0, answer.stderr + log
    assert answer.stdout.strip() == "3 4 5 6 7", log
    assert process.returncode == 0, log
