"""Trees that are no longer needed are moved here, so that nothing is deleted while something is measured.

An ext4 without a journal, which some virtual machines have, does not reuse an inode for one to six minutes after its
file was deleted, and every creation of a file scans those inodes first. Right after a cache of 3,000 files was
emptied, a cold epoch into the next cache took 400 microseconds of kernel time a file instead of 250. The first epoch
on a node does not pay this.
"""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

from hayloft_lab.driver import unmount_below

_KEPT_SHARE = 0.5
"""The share of the disk space that was free at first and that the trash leaves free."""


class Trash:
    """Trees are renamed into ``directory``, on their file system, and deleted when their space is needed."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory. The owner of its parent removes it with its content."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._floor_bytes = int(shutil.disk_usage(directory).free * _KEPT_SHARE)
        self._trees: deque[Path] = deque()
        self._count = 0

    def put(self, tree: Path) -> None:
        """Moves a tree, if it exists, into the trash; nothing may use it. Raises OSError."""
        self._count += 1
        trashed = self._directory / str(self._count)
        try:
            tree.rename(trashed)
        except FileNotFoundError:
            return
        self._trees.append(trashed)
        self.free(self._floor_bytes)

    def free(self, wanted_bytes: int) -> None:
        """Deletes the oldest trees until ``wanted_bytes`` of the disk are free, or none is left. Blocks on the disk."""
        while self._trees and shutil.disk_usage(self._directory).free < wanted_bytes:
            tree = self._trees.popleft()
            if not unmount_below(tree):  # deleting below a mount could delete the files that it shows
                shutil.rmtree(tree, ignore_errors=True)
