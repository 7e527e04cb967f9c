"""Where trees go that are not needed any more, so that nothing is deleted while something is measured.

An ext4 without a journal, which some virtual machines have, does not give out an inode again for one to six minutes
after its file was deleted, and whoever makes a file looks at each such inode first. Right after a cache of 3,000 files
was emptied, a cold epoch into the next one took 400 microseconds of kernel time a file instead of 250. A first epoch
on a node has no such past.
"""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

from hayloft_bench.demo.driver import unmount_below

_KEPT_SHARE = 0.5
"""Of what was free on the disk at first, so much stays free of trees that were put aside."""


class Trash:
    """Trees are renamed to ``directory``, which is on their file system, and lie there until their room is needed."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory. Whoever made its parent removes it with all that is in it."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._floor_bytes = int(shutil.disk_usage(directory).free * _KEPT_SHARE)
        self._trees: deque[Path] = deque()
        self._count = 0

    def put(self, tree: Path) -> None:
        """Moves a tree away, if it is there; nothing may be using it. Raises OSError."""
        self._count += 1
        away = self._directory / str(self._count)
        try:
            tree.rename(away)
        except FileNotFoundError:
            return
        self._trees.append(away)
        self.make_room(self._floor_bytes)

    def make_room(self, free_bytes: int) -> None:
        """Deletes the oldest trees until so much of the disk is free, or none is left. Blocks on the disk."""
        while self._trees and shutil.disk_usage(self._directory).free < free_bytes:
            tree = self._trees.popleft()
            if not unmount_below(tree):  # else deleting could delete what is shown there
                shutil.rmtree(tree, ignore_errors=True)
