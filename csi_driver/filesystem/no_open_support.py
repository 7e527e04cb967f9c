"""Decides whether a dataset is read without OPEN and RELEASE (decision 10).

Without opens, files in the page cache are read without a request; others are read through the daemon: two copies in
memory and, from the disk, several times the work of a passthrough read. So this pays where files are small, since two
requests cost little beside the bytes of a large file, and where their pages can stay until the next epoch.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from csi_driver.catalog.tree import Tree

OpensMode = Literal["auto", "kernel", "daemon"]
"""Which opens the files of a volume: the kernel by itself, or the daemon at each open; ``auto``: by the rule here."""

SMALL_BYTES = 512 << 10
"""Through FUSE, as a share of plain files, without opens and with passthrough (8 readers, two cores): files of 323 kB
1.06 and 0.69 from the page cache, 0.43 and 0.72 from the disk; of 1 MB 0.92 and 0.74, 0.55 and 0.80; of 2.8 MB 0.98
and 0.81, 0.85 and 0.97."""
SMALL_SHARE = 0.9
"""From this share of a dataset's bytes in small files on. The rest, an index or a label file, is then served by the
daemon instead of by passthrough, which is no loss once it is in the page cache."""
MEMORY_SHARE = 0.5
"""Of the machine's memory: every page is there twice, the file's in the mount and the object file's. Of the limit of a
control group: the pages of the mount are charged to the reader, and the other half is its own."""

_PROCESSES = Path("/proc")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


class NoOpenRule:
    """Whether a dataset is read without opens. ``opens`` is the volume's parameter: ``auto``, or what is to be done
    whatever the files and the memory are."""

    def __init__(self, tree: Tree, small_object_bytes: int, opens: OpensMode, page_bytes: int = mmap.PAGESIZE) -> None:
        """``small_object_bytes``: objects of up to this size are fetched in one request. ``page_bytes`` are those of a
        page of the kernel, 4 to 64 KiB."""
        self._opens, self._tree = opens, tree
        self._small_up_to_bytes = min(SMALL_BYTES, small_object_bytes)
        self._page_bytes = page_bytes
        self._counted: float | None = None

    def applies(self, memory_bytes: int) -> bool:
        """With so much memory for the pages of the mount. Sums the sizes of all files, once, where it depends on them:
        those of a hundred million files would take seconds, and are mostly more than the memory anyway."""
        if self._opens == "auto":
            most_bytes = MEMORY_SHARE * memory_bytes
            return self._tree.total_bytes <= most_bytes and self._bytes_in_memory() <= most_bytes
        return self._opens == "kernel"

    def _bytes_in_memory(self) -> float:
        """Of all files; infinity where they are not small."""
        if self._counted is None:
            total_bytes, up_to_bytes = self._tree.total_bytes, self._small_up_to_bytes
            is_small = total_bytes and self._tree.bytes_in_files_up_to(up_to_bytes) / total_bytes >= SMALL_SHARE
            # A file of one byte takes a page of up to 64 KiB: a dataset of 10 kB each then takes six times its size.
            self._counted = self._tree.bytes_in_pages_of(self._page_bytes) if is_small else math.inf
        return self._counted


def machine_memory_bytes() -> int:
    """Of the machine, not of the container's limit."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def reader_memory_bytes(process_id: int, processes: Path = _PROCESSES, groups: Path = _CONTROL_GROUPS) -> int:
    """What a process may use: the least of the machine's memory and the limits of its control groups. Where the process
    or its groups cannot be seen, because the daemon has a pid or cgroup namespace of its own, the machine's memory."""
    limits = [machine_memory_bytes()]
    with suppress(OSError):
        for line in (processes / str(process_id) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                limits += _limits(groups, path, "memory.max")
            elif "memory" in controllers.split(","):
                limits += _limits(groups / "memory", path, "memory.limit_in_bytes")
    return min(limits)


def _limits(root: Path, path: str, name: str) -> Iterator[int]:
    """Of a control group and of all that it is in, without the root, which has none."""
    parts = Path(path).parts[1:]
    if ".." in parts:  # outside the cgroup namespace of the daemon
        return
    for count in range(1, len(parts) + 1):
        with suppress(OSError, ValueError):  # not visible, or "max"
            yield int(root.joinpath(*parts[:count], name).read_text())
