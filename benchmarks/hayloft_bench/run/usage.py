"""What processes have used: processor time, memory, disk reads; and how much of the disk a cache takes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

from hayloft_bench.results.model import TargetUsage


def tree(pid: int | None) -> list[psutil.Process]:
    """The process and all its descendants that are running."""
    if pid is None:
        return []
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def of_tree(pid: int | None, cache: Path) -> TargetUsage:
    """Of a process and its descendants since they started, including descendants that have ended and were waited for.
    Memory is the sum of the highest resident sets: an upper bound, since the processes may not have reached them at
    the same time."""
    cpu_s, peak_bytes, block_bytes = 0.0, 0, 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            times = process.cpu_times()
            cpu_s += times.user + times.system + times.children_user + times.children_system
            peak_bytes += _peak_bytes(process.pid)
            block_bytes += process.io_counters().read_bytes
    return TargetUsage(cpu_s, peak_bytes, stored_bytes(cache), block_bytes)


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = status.partition("VmHWM:")[2].split(maxsplit=1)
    return 1024 * int(found[0]) if found else 0


def stored_bytes(directory: Path) -> int:
    """Blocks of all files below, holes left out; a file with several names counts once. 0 without the directory."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(f"{folder}/{name}")
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
    return total
