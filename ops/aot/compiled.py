"""A launch compiled to a GPU's machine code, and what there is to know of the result without that GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import triton

from kernels.gpu.architectures import Architecture
from ops.aot.cases import CASES
from ops.aot.record import TARGETS, Launch, record


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one launch."""

    name: str  # of the case, and the kernel's
    target: str
    warps: int
    registers: int  # of a thread, vector registers on AMD
    stack_bytes: int  # of a thread: what did not fit in registers, or is indexed
    spills: int  # AMD: registers spilled
    shared_bytes: int  # of a program
    buffers: int  # tiles of a loop that are under way at once, at most
    waits: list[int]  # copies that each wait leaves under way
    products: dict[str, int]  # matrix instructions by name

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def line(self) -> str:
        """One line of a table."""
        products = " ".join(f"{name} {count}" for name, count in self.products.items() if count) or "-"
        return (
            f"{self.name:<58} {self.target:<7} {self.warps:>2} warps {self.registers:>4} regs {self.stack_bytes:>4} B "
            f"stack {self.spills:>3} spills {self.shared_bytes:>7} B shared, {self.buffers} buffers, waits "
            f"{self.waits}, {products}"
        )


def new_in_each(names: Sequence[str], target: Architecture) -> list[frozenset[str]]:
    """Of each case the keys of launches that no case before it makes: what two cases share is compiled once."""
    seen: set[str] = set()
    found = []
    for name in names:
        keys = {launch.key for launch in record(partial(CASES[name], target), target)}
        found.append(frozenset(keys - seen))
        seen |= keys
    return found


def compile_case(name: str, target: Architecture, keys: frozenset[str]) -> list[Compiled]:
    """Those kernels of a case that have these keys, each once."""
    launches = {launch.key: launch for launch in record(lambda: CASES[name](target), target) if launch.key in keys}
    return [_compile(f"{name}: {launch.kernel.lstrip('_')}", launch, target) for launch in launches.values()]


def _compile(name: str, launch: Launch, target: Architecture) -> Compiled:
    gpu = TARGETS[target]
    made = triton.compile(launch.source, target=gpu, options=launch.options)
    intermediate = made.asm["ttgir"]
    waits = [int(count) for count in re.findall(r"async_wait[^\n]*num = (\d+)", intermediate)]
    depths = [int(depth) for depth in re.findall(r"memdesc<(\d+)x\d+x\d+x(?:bf16|f16|f32|i8|f8)", intermediate)]
    measured = _amd(made.asm["amdgcn"]) if gpu.backend == "hip" else _nvidia(made.asm["cubin"])
    code = made.asm["amdgcn"] if gpu.backend == "hip" else made.asm["ptx"]
    products = {p: code.count(p) for p in ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma")}
    return Compiled(
        name=name,
        target=target.value,
        warps=made.metadata.num_warps,
        shared_bytes=made.metadata.shared,
        buffers=max(depths, default=0),
        waits=waits,
        products=products,
        **measured,
    )


def _nvidia(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", said)[-1]) for name in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "stack_bytes": stack + local, "spills": 0}


def _amd(assembly: str) -> dict[str, int]:
    def field(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", assembly)[-1])

    return {
        "registers": field("vgpr_count"),
        "stack_bytes": field("private_segment_fixed_size"),
        "spills": field("vgpr_spill_count") + field("sgpr_spill_count"),
    }
