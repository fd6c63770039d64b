"""The machine that a bench runs on: processor, memory, versions; and what else keeps it busy. Linux."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
ISA = (  # the instruction sets that decide how fast the products are
    *("avx2", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
BUSY_CORES = 0.15  # what others may take before a measurement is doubted
_LOOK_S = 1.0
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


@dataclass(frozen=True)
class Machine:
    """`cores` are those this process may run on; `commit` ends in + where files differ from it."""

    cpu: str
    cores: int
    l3: str | None  # "32768K": whether the weights fit decides much
    isa: list[str]
    memory_gib: float
    kernel: str
    python: str
    torch: str
    transformers: str
    commit: str | None
    load_average: list[float]  # before the bench, over 1, 5 and 15 minutes
    others_cores: float  # CPU time of all other processes before the bench, in cores

    @classmethod
    def here(cls, *, quick: bool = False) -> Machine:
        """Look; takes a second, to see what else runs, and less where nobody will judge by it."""
        cpuinfo = Path("/proc/cpuinfo").read_text()
        flags = set(re.findall(r"\w+", "".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.M)[:1])))
        load, others = [round(load, 2) for load in os.getloadavg()], Others()
        time.sleep(_LOOK_S / 20 if quick else _LOOK_S)  # a share of the CPU is one over some time
        return cls(
            cpu=_cpu(cpuinfo),
            cores=len(os.sched_getaffinity(0)),
            l3=_L3.read_text().strip() if _L3.exists() else None,
            isa=[flag for flag in ISA if flag in flags],
            memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            kernel=platform.release(),
            python=platform.python_version(),
            torch=version("torch"),
            transformers=version("transformers"),
            commit=_commit(),
            load_average=load,
            others_cores=others.cores(),
        )

    @property
    def device(self) -> str:
        """For a file's name: what it is and how many cores."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.cpu} {self.cores} cores".lower()).strip("-")

    def lines(self) -> list[str]:
        """What stands above a bench's tables, with a warning where others keep the machine busy."""
        said = [
            f"{self.cpu}, {self.cores} cores ({' '.join(self.isa)}), L3 {self.l3}, {self.memory_gib} GiB of memory, "
            f"Linux {self.kernel}",
            f"Python {self.python}, torch {self.torch}, transformers {self.transformers}, commit {self.commit}",
            f"load average {' '.join(map(str, self.load_average))}; other processes take {self.others_cores} cores",
        ]
        if self.others_cores > BUSY_CORES:
            said.append("WARNING: the machine is busy with other work: these figures say little")
        return said


class Others:
    """CPU time of all other processes, from its making until it is asked; what a hypervisor took counts too."""

    def __init__(self) -> None:
        self._began, self._busy_s, self._own_s = time.perf_counter(), _busy_s(), time.process_time()

    def cores(self) -> float:
        """Cores they kept busy on average; ticks are 10 ms, so a few seconds make a figure."""
        others_s = _busy_s() - self._busy_s - (time.process_time() - self._own_s)
        return round(max(0.0, others_s / (time.perf_counter() - self._began)), 2)


def _cpu(cpuinfo: str) -> str:
    """The processor's name, with family and model where a hypervisor leaves no more of it than a brand."""
    said = dict(re.findall(r"^([\w ]+?)\s*: *(.*)$", cpuinfo.split("\n\n")[0], re.M))
    name = said.get("model name") or said.get("CPU part") or platform.machine()
    return f"{name} (family {said['cpu family']}, model {said['model']})" if "cpu family" in said else name


def _busy_s() -> float:
    """Seconds that all cores together have been anything but idle."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _commit() -> str | None:
    """The commit of this tree, or None where it is none of git's."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return f"{head}+" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
