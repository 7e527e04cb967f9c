"""After a daemon was killed: reconciles the index with the object files, in the background.

The last batch of changes may be missing from the index. So there may be complete files without a row (the rename is the
commit, so they have all their bytes: they get a row), partial files without a row (which chunks they hold is unknown:
they are dropped), and rows without a file (they are dropped too).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from csi_driver.cache.cache_directory import CacheDirectory
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.chunk_verification import checksums_of_file
from csi_driver.cache.disk import Disk
from csi_driver.cache.index import Index, IndexRow

_SETTLED_S = 5.0
"""Files changed later than this before the reconciliation began may be those of the daemon that runs now."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was changed."""

    adopted_bytes: int
    dropped_files: int
    dropped_row_bytes: int


def reconcile(
    cache_directory: CacheDirectory,
    index: Index,
    disk: Disk,
    generation: int,
    *,
    files_are_trusted: bool,
    in_use: Container[str],
    stopping: Callable[[], bool],
) -> Findings:
    """Walks the 256 directories. ``files_are_trusted``: the machine has not crashed since they were written; a file
    without a row is then adopted, else dropped, for there is no CRC to check it by. Files ``in_use`` are left alone.
    """
    started = time.time() - _SETTLED_S
    adopted = dropped = dropped_rows = 0
    for number in range(256):
        if stopping():
            break
        folder = f"{number:02x}"
        complete = _settled_names(cache_directory.objects / folder, started)
        partial = _settled_names(cache_directory.partial / folder, started)
        # Readers add, evict and complete files meanwhile. What they add is too young to be settled, and each candidate
        # is looked up again right before it is changed.
        rows = {row.digest: row for row in index.rows_of(folder)}
        for digest in complete - rows.keys():
            if digest in in_use or index.find(digest) is not None:
                continue
            path = os.fspath(cache_directory.objects / folder / digest)
            if files_are_trusted:
                adopted += _adopt(path, digest, index, disk, generation)
            else:
                disk.unlink("object.drop", path)
                dropped += 1
        for digest in partial - rows.keys():
            if digest not in in_use and index.find(digest) is None:
                disk.unlink("object.drop", cache_directory.partial / folder / digest)
                dropped += 1
        for digest in rows.keys() - complete - partial:
            if digest not in in_use and not _exists(cache_directory, folder, digest):
                index.forget(digest)
                dropped_rows += rows[digest].present_bytes
    return Findings(adopted, dropped, dropped_rows)


def _settled_names(directory: os.PathLike[str], started: float) -> set[str]:
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries if len(entry.name) == 40 and entry.stat().st_mtime < started}


def _exists(cache_directory: CacheDirectory, folder: str, digest: str) -> bool:
    return any((parent / folder / digest).exists() for parent in (cache_directory.objects, cache_directory.partial))


def _adopt(path: str, digest: str, index: Index, disk: Disk, generation: int) -> int:
    descriptor = disk.open("object.open", path)
    if descriptor is None:
        return 0
    try:
        status = os.fstat(descriptor)
        chunks: ChunkMap = checksums_of_file(disk, descriptor, status.st_size)
    finally:
        os.close(descriptor)
    index.record(IndexRow(digest, status.st_size, status.st_size, True, chunks.encode(), generation))
    return status.st_size
