"""Writes requirements.lock: the newest versions that pyproject.toml's groups allow, everything they need included.

Goes in: the `dependencies` and the `dev` group of pyproject.toml, and the registry that pip is set up for. Comes out:
one `name==version` a line. torch is pinned to what the registry has as a CPU build, or to the version already locked:
ops/setup.py decides which build of it a machine gets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"

HEAD = """\
# Every version that `make` installs; written by `make lock`, never by hand. Tried on Python 3.11, 3.12 and 3.13.
# torch's build (CPU or CUDA) is chosen by ops/setup.py; a CUDA build brings the triton it was made with.
"""


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [*project["project"]["dependencies"], *expand(project["dependency-groups"], "dev")]
    # so that the editable install needs no second download: hatchling, and what it asks for to install editable
    requirements += [*project["build-system"]["requires"], "editables"]
    markers = {name_of(line): line.split(";", 1)[1].strip() for line in requirements if ";" in line}
    # Without the +cpu the resolution would bring in the CUDA packages; they are no business of this lock.
    versions = resolve([*(line for line in requirements if name_of(line) != "torch"), f"torch=={torch_version()}+cpu"])
    lines = []
    for name, version in sorted(versions.items()):
        marker = f"; {markers[name]}" if name in markers else ""
        lines.append(f"{name}=={version.removesuffix('+cpu')}{marker}\n")
    LOCK.write_text(HEAD + "".join(lines))
    print(f"{LOCK.name}: {len(lines)} packages")
    return 0


def expand(groups: dict[str, list[Any]], name: str) -> list[str]:
    """The requirements of a PEP 735 group, with the groups it includes."""
    lines: list[str] = []
    for item in groups[name]:
        lines += expand(groups, item["include-group"]) if isinstance(item, dict) else [item]
    return lines


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return normal(match.group())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def torch_version() -> str:
    """The version to lock: given as the argument, else the one locked now."""
    if len(sys.argv) > 1:
        return sys.argv[1]
    found = re.search(r"^torch==(\S+)", LOCK.read_text() if LOCK.exists() else "", re.MULTILINE)
    if not found:
        sys.exit("no torch in requirements.lock: name its version, `python ops/lock.py 2.13.0`")
    return found.group(1)


def resolve(requirements: list[str]) -> dict[str, str]:
    """What pip would install into an empty environment: normalised name to version."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    answer = subprocess.run([*command, *requirements], stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        sys.exit("pip could not resolve pyproject.toml's requirements (its words are above)")
    found = [item["metadata"] for item in json.loads(answer.stdout)["install"]]
    return {normal(item["name"]): item["version"] for item in found}


if __name__ == "__main__":
    sys.exit(main())
