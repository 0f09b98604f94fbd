"""What this machine has: free memory, the container's share, the GPU's memory. Torch-free until a GPU is asked about.

Owns where the system says so. Knows nothing of what is to be run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60
"""A container's limit above this is none."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. free: what a new process can take. limit: of the container; None where there is none."""

    free: int
    limit: int | None = None


def memory(root: Path = Path("/")) -> Memory | None:
    """Of this machine, or of the container if that has less; None where the system does not say (no /proc)."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    free, limit = 1024 * int(found.split()[1]), None
    for group in _groups(root):
        if group.limit is not None and group.limit < UNLIMITED:
            free = min(free, group.free)
            limit = min(limit or UNLIMITED, group.limit)
    return Memory(free=max(0, free), limit=limit)


def _groups(root: Path) -> Iterator[Memory]:
    """The control groups that this process is in, of both versions, where they state a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        names = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
        own = mounted / path.strip("/")
        for folder in (own, *own.parents):
            if (group := _group(folder, *names)) is not None:
                yield group
            if folder == mounted:
                break


def _group(folder: Path, limit_name: str, usage_name: str) -> Memory | None:
    """Limit and what is left of it; files that the system may forget count as free."""
    try:
        limit = (folder / f"memory.{limit_name}").read_text().strip()
        usage = int((folder / f"memory.{usage_name}").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    forgettable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return Memory(free=int(limit) - usage + forgettable, limit=int(limit))


def processors(root: Path = Path("/")) -> float:
    """Cores that this process may use; a container's share may be a fraction."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    groups = root / "sys/fs/cgroup"
    try:
        quota, period = (groups / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((groups / "cpu" / name).read_text().strip() for name in names)
        except OSError:
            return cores
    return min(cores, int(quota) / int(period)) if quota.isdigit() else cores


def gpu_memory(device: str) -> tuple[int, int] | None:
    """Free and all bytes of a GPU, named cuda or cuda:1; None where there is no such GPU. Imports torch."""
    import torch

    number = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        return None
    free, total = torch.cuda.mem_get_info(number)
    return int(free), int(total)


def gigabytes(size: int) -> str:
    """
    >>> gigabytes(1_234_000_000), gigabytes(49_000_000)
    ('1.2 GB', '49 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 950_000_000 else f"{size / 1e6:.0f} MB"
