"""Makes the project's own virtual environment: `make demo`, `make test` and the rest run this first.

Goes in: pyproject.toml and requirements.lock beside it, and `SLIPSTREAM_TORCH`. Comes out: a virtual environment that
holds every pinned package, torch, and this package (editable), with `.ready` written last. Knows only the standard
library: it runs under whatever Python >= 3.11 the machine has, before anything is installed.

A run that was interrupted leaves `.installing` behind, and the next one starts afresh: pip takes a half-installed
package for a whole one. A run that finds everything as it left it ends at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
INPUTS = (ROOT / "pyproject.toml", LOCK, Path(__file__).resolve())
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)", re.MULTILINE)


class SetupError(Exception):
    """A step that did not work, with what to do about it."""


def main(argv: list[str]) -> int:
    """`setup.py [DIR]`: make or refresh the environment in DIR (default .venv). Exits 1 with one clear line."""
    directory = Path(argv[0] if argv else ".venv").absolute()
    try:
        with one_at_a_time():
            prepare(directory)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next run starts afresh")
        return 130
    return 0


def prepare(directory: Path) -> None:
    """Bring `directory` to the state that pyproject.toml and requirements.lock describe, or leave `.installing`."""
    started = time.monotonic()
    ready, installing = directory / ".ready", directory / ".installing"
    wanted = state()
    if ready.exists() and not installing.exists() and ready.read_text() == wanted and usable(directory):
        ready.touch()  # newer than its inputs again, so make stops asking
        return
    ready.unlink(missing_ok=True)
    if installing.exists() or not usable(directory):
        say(f"Python {sys.version.split()[0]} ({sys.executable}) makes {directory.name}/")
        shutil.rmtree(directory, ignore_errors=True)
        venv.create(directory, with_pip=True)
    installing.touch()
    try:
        install(directory)
    except SetupError:
        installing.unlink()  # pip gave up by itself and left things whole: the next run goes on from here
        raise
    ready.write_text(wanted)
    installing.unlink()
    say(f"ready in {time.monotonic() - started:.0f} s")


def install(directory: Path) -> None:
    """Install torch and the pinned packages in one resolution, then this package itself, editable and alone."""
    lock = LOCK.read_text()
    version = {pin["name"]: pin["version"] for pin in PIN.finditer(lock)}["torch"]
    count = len(PIN.findall(lock))
    own_choice = os.environ.get("SLIPSTREAM_TORCH")
    wants_cpu = not own_choice and not has_gpu() and sys.platform == "linux"
    torch = own_choice or (f"torch=={version}+cpu" if wants_cpu else f"torch=={version}")
    say(f"installing {torch} and {count - 1} pinned packages: a minute or two (log: {directory.name}/setup.log)")
    found = pip(directory, torch, "-r", str(pins(directory, lock, pinned_triton=wants_cpu)), may_miss=torch)
    if not found and wants_cpu:
        say(f"no {torch} here; taking torch=={version}, whose build brings gigabytes of CUDA libraries on Linux")
        say("(to choose another: SLIPSTREAM_TORCH='torch==...', or PIP_EXTRA_INDEX_URL with an index of CPU builds)")
        found = pip(directory, f"torch=={version}", "-r", str(pins(directory, lock, pinned_triton=False)))
    if not found:
        raise SetupError(f"pip finds no {torch}: name one it can find in SLIPSTREAM_TORCH")
    # hatchling is among the pins: no second download into an isolated build environment
    pip(directory, "--no-deps", "--no-build-isolation", "-e", str(ROOT))


def pins(directory: Path, lock: str, *, pinned_triton: bool) -> Path:
    """The lock without torch. A CUDA build of torch demands the triton it was built with, so there the pin goes."""
    text = re.sub(r"^torch==.*\n", "", lock, flags=re.MULTILINE)
    if not pinned_triton:
        text = re.sub(r"^triton==[^\s;]+", "triton", text, flags=re.MULTILINE)
    path = directory / "requirements.txt"
    path.write_text(text)
    return path


def pip(directory: Path, *arguments: str, may_miss: str | None = None) -> bool:
    """Run `pip install`. False if `may_miss` is given and just that is not to be had; SetupError if it fails else."""
    command = [str(directory / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    log = directory / "setup.log"
    lines: list[str] = []
    process = subprocess.Popen(
        [*command, "--progress-bar=off", "--no-compile", *arguments],  # compiling all of torch takes half a minute
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    with log.open("a") as file:
        for line in process.stdout:
            file.write(line)
            lines.append(line.rstrip())
            if sys.stdout.isatty():
                print(f"\r\x1b[K  {lines[-1].strip()[:100]}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\x1b[K", end="", flush=True)
    if process.wait() == 0:
        return True
    if process.returncode < 0:
        sys.exit(f"setup: pip was ended by signal {-process.returncode}; the next run starts afresh")
    if may_miss and any(f"No matching distribution found for {may_miss}" in line for line in lines):
        return False
    errors = [line.strip() for line in lines if re.match(r"\s*(ERROR:|\w*Error:)", line)] or lines[-3:]
    raise SetupError("pip failed: " + " | ".join(errors) + f" (all of it: {log})")


def usable(directory: Path) -> bool:
    """Whether `directory` holds an environment of this very Python minor version that starts."""
    python = directory / "bin" / "python"
    probe = "import sys, pip; print(sys.version_info[:2])"
    if not python.exists():
        return False
    answer = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout.strip() == str(sys.version_info[:2])


def state() -> str:
    """What an environment must have been made from to be the one wanted now."""
    digest = hashlib.sha256()
    for path in INPUTS:
        digest.update(path.read_bytes())
    choice = os.environ.get("SLIPSTREAM_TORCH") or ("gpu" if has_gpu() else "cpu")
    return f"{digest.hexdigest()} {ROOT} {choice}\n"


def has_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two `make` at once, one environment: the second waits, then finds it ready."""
    with INPUTS[0].open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this tree")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    print(f"setup: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
