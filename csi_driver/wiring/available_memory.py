"""How much memory is available to this process: of the machine, and of the limits of its container and pod."""

from __future__ import annotations

from pathlib import Path

from csi_driver.wiring.control_group import ControlGroupMemory, numbers, own_groups

_MEMINFO = Path("/proc/meminfo")


def available_bytes(meminfo: Path = _MEMINFO, groups: tuple[Path, ...] | None = None) -> int:
    """Without swap; the page cache is available. ``groups`` are those that this process is in, if not given."""
    available = numbers(meminfo)["MemAvailable:"] << 10
    for group in own_groups() if groups is None else groups:
        memory = ControlGroupMemory.read(group)
        if memory is not None and memory.limit_bytes is not None:
            available = min(available, memory.limit_bytes - memory.current_bytes + memory.page_cache_bytes)
    return max(0, available)
