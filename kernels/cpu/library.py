"""The C kernels as a shared library: compiled once for this machine, kept in a cache, loaded with ctypes.

Needs a C compiler at the first start on a machine only. Where there is none, or nothing can be written, the caller
falls back to torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from kernels.errors import KernelsUnavailable

HEADERS = ("vectors.h", "operations.h", "panels.h", "threads.h")
SOURCES = (
    *(
        "attention.c",
        "attention_codes.c",
        "batch.c",
        "forward.c",
        "layers.c",
        "logits.c",
        "product.c",
        "product_int8.c",
    ),
    *("sample.c", "sample_floats.c", "threads.c"),
)
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-pthread", "-fPIC")
ELEMENTS = {"float32": (), "bfloat16": ("-DELEMENT_BF16",)}


class CpuKernelsUnavailable(KernelsUnavailable):
    """The C kernels can't be had here; says why."""


@cache
def load(element: str) -> ctypes.CDLL:
    """The library for one element type, compiled if it is not in the cache. Import torch first: it brings OpenMP.

    Raises CpuKernelsUnavailable.
    """
    if element not in ELEMENTS:
        raise CpuKernelsUnavailable(f"the C kernels are for {' and '.join(ELEMENTS)}, not for {element}")
    compiler = (
        shutil.which(os.environ.get("CC", "cc")) or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    )
    path = cache_directory() / f"{_key(element)}.so"
    if not _is_there(path):
        _compile(element, compiler, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CpuKernelsUnavailable(f"{path} can't be loaded: {error}") from None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # below a directory that this user may not even look into
        return False


def cache_directory() -> Path:
    """Where compiled kernels are kept: SLIPSTREAM_KERNEL_CACHE, else slipstream/ in the user's cache.

    Raises CpuKernelsUnavailable where the user has no home, as one that a container was given at random.
    """
    if given := os.environ.get("SLIPSTREAM_KERNEL_CACHE"):
        return Path(given)
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise CpuKernelsUnavailable("this user has no home to keep them in; set SLIPSTREAM_KERNEL_CACHE") from None
    return base / "slipstream"


def _key(element: str) -> str:
    """Names what the library depends on: sources, flags, and the processor that `native` means; not the compiler."""
    digest = hashlib.sha256(repr((FLAGS, ELEMENTS[element])).encode())
    for name in (*HEADERS, *SOURCES):
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(_processor().encode())
    return f"cpu-{element}-{digest.hexdigest()[:16]}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _compile(element: str, compiler: str | None, path: Path) -> None:
    if compiler is None:
        raise CpuKernelsUnavailable("no C compiler (cc, gcc or clang) on PATH, and no compiled kernels in the cache")
    flags = [compiler, *FLAGS, *ELEMENTS[element]]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            built = Path(scratch) / path.name
            objects = [str(Path(scratch) / f"{name}.o") for name in SOURCES]
            each = [[*flags, "-c", str(Path(__file__).parent / name)] for name in SOURCES]
            with ThreadPoolExecutor(os.cpu_count()) as several:  # two of them take nearly all the time
                list(several.map(_run, ([*words, "-o", made] for words, made in zip(each, objects, strict=True))))
            _run([*flags, "-shared", *objects, "-o", str(built), "-lm"])
            built.replace(path)  # whole or not at all, also where two workers start at once
    except OSError as error:
        raise CpuKernelsUnavailable(f"{path.parent} can't be written ({error}); set SLIPSTREAM_KERNEL_CACHE") from None
    except subprocess.CalledProcessError as error:
        first = (error.stderr or "").strip().splitlines()[:1]
        raise CpuKernelsUnavailable(f"{compiler} could not compile the C kernels: {' '.join(first)}") from None
