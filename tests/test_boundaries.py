"""Who may import whom, and what things may be called. ARCHITECTURE.md draws it; here it is held."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("producer", "worker", "kernels", "ops", "tests")
GPU_MACHINE = {"torch", "triton", "numpy", "safetensors", "tokenizers", "transformers"}  # all a bare one has

# folder: (what of ours it may import, what of others')
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "producer": ({"producer"}, {"redis", "msgpack", "pydantic", "pydantic_core", "click"}),
    "kernels": ({"kernels"}, GPU_MACHINE),
    "worker/models": ({"worker.models", "kernels"}, GPU_MACHINE),
    "worker/engine": ({"worker.engine", "worker.models", "kernels"}, GPU_MACHINE),
    "worker/text": ({"worker.text"}, GPU_MACHINE | {"jinja2", "huggingface_hub"}),  # both come with transformers
}
JOINS_THE_HALVES = {"worker.loop", "worker.__main__"}
BANNED_ENDING = re.compile(r"(Manager|Handler|Helper|Mixin)s?$")
BANNED_MODULES = {"utils", "util", "common", "helpers", "helper", "manager", "handler", "misc"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, package: str) -> set[str]:
    """Every module `source` names in an import, wherever in the file; `from a import b` counts as a and as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def imports_of(path: Path) -> set[str]:
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imports(path.read_text(), package)


def is_within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def test_every_form_of_import_is_seen():
    """`imports` sees plain, from, relative and indented imports: the rules below rest on it."""
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom .f import g\ndef h():\n    from ..i import j\n"
    assert imports(source, "p.q") == {"a.b", "c", "c.d", "p.q", "p.q.e", "p.q.f", "p.q.f.g", "p.i", "p.i.j"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder: str):
    """A package imports only what its row in MAY_IMPORT lists, the standard library aside."""
    ours, others = MAY_IMPORT[folder]
    files = sources(folder)
    assert files, f"nothing under {folder}/"
    wrong = []
    for path in files:
        for module in imports_of(path):
            top = module.split(".")[0]
            if top in OURS:
                allowed = is_within(module, ours) or module == folder.split("/")[0]  # `from worker import ...`
            else:
                allowed = top in others | sys.stdlib_module_names
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, wrong


def test_only_the_loop_knows_both_halves_of_the_worker():
    """No module of worker/ but the loop and the program reaches both `producer` and `worker.engine`."""
    graph = {module_of(path): imports_of(path) for path in sources("worker")}
    wrong = [
        module
        for module in graph
        if module not in JOINS_THE_HALVES
        and is_in_reach("producer", module, graph)
        and is_in_reach("worker.engine", module, graph)
    ]
    assert not wrong, f"these reach both halves: {wrong}"


def is_in_reach(target: str, start: str, graph: dict[str, set[str]]) -> bool:
    """Whether following imports from `start` through modules of `graph` comes to `target` or something in it."""
    seen, ahead = {start}, [start]
    while ahead:
        for module in graph[ahead.pop()]:
            if is_within(module, {target}):
                return True
            if module in graph and module not in seen:
                seen.add(module)
                ahead.append(module)
    return False


def test_importing_the_producer_loads_nothing_heavy():
    """A service that imports `producer` loads neither torch nor transformers nor numpy, nor our other packages."""
    program = "import producer, producer.cli, sys; print(*sys.modules, sep='\\n')"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.split(".")[0] for line in answer.stdout.split()}
    assert "producer" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "numpy", "triton", "worker", "kernels"}


def test_no_name_says_that_it_merely_manages_handles_or_helps():
    """No class is a Manager, Handler, Helper or Mixin; no module is utils or common."""
    wrong = []
    for path in [path for folder in ("producer", "worker", "kernels", "ops") for path in sources(folder)]:
        if {part.lower() for part in path.relative_to(ROOT).with_suffix("").parts} & BANNED_MODULES:
            wrong.append(str(path.relative_to(ROOT)))
        classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in classes if BANNED_ENDING.search(name)]
    assert not wrong, wrong


def test_no_package_file_under_tests():
    """tests/ has no __init__.py: tests/kernels would otherwise shadow our package `kernels`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
