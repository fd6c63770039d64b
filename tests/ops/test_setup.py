"""`make`'s set-up on small trees of our own: what it installs, what it says, and how it gets over an interruption.

The trees pin nothing but a torch of a few bytes that lies in a folder beside them, so pip really runs, offline.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BACKEND = """
import pathlib, shutil
def build_editable(directory, config_settings=None, metadata_directory=None):
    return pathlib.Path(shutil.copy("slipstream-0-py3-none-any.whl", directory)).name
"""


def wheel(directory: Path, name: str, version: str) -> None:
    """Write the smallest wheel pip takes: one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment to copy: making one takes longer than all else here."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=True)
    return directory


@pytest.fixture
def tree(tmp_path: Path, environment: Path) -> Path:
    """A tree with our Makefile and set-up, an outdated environment, no wheels yet, and a backend that works offline."""
    shutil.copytree(environment, tmp_path / ".venv", symlinks=True)
    (tmp_path / "ops").mkdir()
    (tmp_path / "wheels").mkdir()
    shutil.copy(ROOT / "ops/setup.py", tmp_path / "ops")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("torch==9.9\n")
    wheel(tmp_path, "slipstream", "0")
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slipstream"\nversion = "0"\n'
    )
    return tmp_path


def make(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tree / "wheels"), "PIP_CONFIG_FILE": os.devnull}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "SLIPSTREAM_"))}
    command = ["make", "setup", f"PYTHON={sys.executable}", *arguments]
    environment = {**kept, **offline, **variables}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=120)


def torch_in(tree: Path) -> str:
    command = [tree / ".venv/bin/python", "-c", "import slipstream, torch; print(torch.version)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


needs_no_gpu = pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None,
    reason="where there is a GPU, or on a Mac, there is no CPU build to choose",
)


@needs_no_gpu
def test_without_a_gpu_the_cpu_build_is_taken_and_then_left_alone(tree: Path):
    """Of two builds the CPU's is taken; a second run does nothing, also where a file is only newer."""
    wheel(tree / "wheels", "torch", "9.9")
    wheel(tree / "wheels", "torch", "9.9+cpu")
    first = make(tree)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "ready" in first.stdout
    assert torch_in(tree) == "9.9+cpu"
    assert make(tree).stdout == ""
    (tree / "pyproject.toml").touch()  # newer, as after a checkout, yet the same
    assert make(tree).stdout == ""


def test_an_interrupted_set_up_is_made_afresh(tree: Path):
    """A run that was killed in the middle leaves nothing that the next one builds on."""
    wheel(tree / "wheels", "torch", "9.9")
    (tree / ".venv/.installing").touch()
    (tree / ".venv/half-installed").touch()
    again = make(tree, SLIPSTREAM_TORCH="torch==9.9")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not (tree / ".venv/half-installed").exists()
    assert not (tree / ".venv/.installing").exists()
    assert torch_in(tree) == "9.9"


@needs_no_gpu
def test_where_no_cpu_build_is_found_the_plain_one_is_taken_and_said(tree: Path):
    """The fall-back to the registry's own build is announced with its cost and the way around it."""
    wheel(tree / "wheels", "torch", "9.9")
    done = make(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDA" in done.stdout
    assert "SLIPSTREAM_TORCH" in done.stdout
    assert torch_in(tree) == "9.9"


def test_slipstream_torch_overrides_the_choice(tree: Path):
    """The torch named in SLIPSTREAM_TORCH is installed, whatever the lock says; one that is not there is named."""
    wheel(tree / "wheels", "torch", "9.8")
    missing = make(tree, SLIPSTREAM_TORCH="torch==9.7")
    assert missing.returncode != 0
    assert "torch==9.7" in missing.stdout
    assert not (tree / ".venv/.ready").exists()
    done = make(tree, SLIPSTREAM_TORCH="torch==9.8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch_in(tree) == "9.8"


def test_without_a_python_the_set_up_says_what_it_needs(tree: Path):
    """Where no candidate is Python 3.11 or later, one line says so and what to do."""
    done = make(tree, "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no Python >= 3.11" in done.stderr
    assert not (tree / ".venv/.ready").exists()


def test_the_help_names_every_target():
    """`make` alone lists each target of the Makefile with a phrase."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    phony = next(line for line in lines if line.startswith(".PHONY:")).removeprefix(".PHONY:").split()
    answer = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {words[1]: words[2:] for words in map(str.split, answer.stdout.splitlines()) if words[:1] == ["make"]}
    assert set(listed) == set(phony)
    assert all(listed.values())
