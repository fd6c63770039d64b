"""How much memory there is for the page pool: what the machine has free, or less if the cgroup says so."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can be had without swapping: the least of MemAvailable and the cgroup's limit less its use.

    Files that were read and can be dropped again (the weights, say) do not count as used.
    """
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except OSError:  # no cgroup v2 here: the machine's figure stands
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used + _droppable_bytes(cgroup)))


def _droppable_bytes(cgroup: Path) -> int:
    try:
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return 0
    return int(stat.get("inactive_file", 0))
