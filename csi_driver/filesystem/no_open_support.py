"""Decides whether a dataset is read without OPEN and RELEASE (decision 10).

Without opens, files in the page cache are read without a request; others are read through the daemon: two copies in
memory and, from the disk, several times the work of a passthrough read. So this pays where files are small, since two
requests cost little beside the bytes of a large file, and where their pages can stay until the next epoch.
"""

from __future__ import annotations

import os

from csi_driver.catalog.tree import Tree

SMALL_BYTES = 512 << 10
"""Through FUSE, as a share of plain files, without opens and with passthrough (8 readers, two cores): files of 323 kB
1.06 and 0.69 from the page cache, 0.43 and 0.72 from the disk; of 1 MB 0.92 and 0.74, 0.55 and 0.80; of 2.8 MB 0.98
and 0.81, 0.85 and 0.97."""
SMALL_SHARE = 0.9
"""From this share of a dataset's bytes in small files on. The rest, an index or a label file, is then served by the
daemon instead of by passthrough, which is no loss once it is in the page cache."""
MEMORY_SHARE = 0.5
"""Every page is in memory twice: the file's in the mount and the object file's."""


def opens_are_needless(tree: Tree, small_object_bytes: int, memory_bytes: int) -> bool:
    """``small_object_bytes``: objects of up to this size are fetched in one request. Sums the sizes of all files."""
    if tree.total_bytes > MEMORY_SHARE * memory_bytes:
        return False
    small_bytes = tree.bytes_in_files_up_to(min(SMALL_BYTES, small_object_bytes))
    return bool(tree.total_bytes) and small_bytes / tree.total_bytes >= SMALL_SHARE


def memory_bytes() -> int:
    """Of the machine, not of the container's limit."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
