"""After a daemon that was killed: brings index and object files to agree, in the background.

The last batch of changes may be missing from the index. So there may be complete files without a row (they are whole,
because the rename is the commit, and get one), partial files without a row (nobody can tell which chunks they hold:
they go), and rows without a file (they go too).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from csi_driver.cache.cache_directory import CacheDirectory
from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.disk import Disk
from csi_driver.cache.index import Index, IndexRow
from csi_driver.cache.verification import checksums_of_file

_SETTLED_S = 5.0
"""Files changed less than this before the daemon started may be its own already."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was put right."""

    adopted_bytes: int
    dropped_files: int
    dropped_row_bytes: int


def reconcile(
    home: CacheDirectory,
    index: Index,
    disk: Disk,
    generation: int,
    *,
    files_are_trusted: bool,
    in_use: Callable[[str], bool],
    stopping: Callable[[], bool],
) -> Findings:
    """Walks the 256 directories. ``files_are_trusted``: the machine has not crashed since they were written; a file
    without a row is then adopted, else dropped, for there is no CRC to check it by."""
    started = time.time() - _SETTLED_S
    adopted = dropped = dropped_rows = 0
    for number in range(256):
        if stopping():
            break
        folder = f"{number:02x}"
        complete = _settled_names(home.objects / folder, started)
        partial = _settled_names(home.partial / folder, started)
        rows = {row.digest: row for row in index.rows_of(folder)}
        for digest in complete - rows.keys():
            if in_use(digest) or index.find(digest) is not None:
                continue
            path = os.fspath(home.objects / folder / digest)
            if files_are_trusted:
                adopted += _adopt(path, digest, index, disk, generation)
            else:
                disk.unlink("object.drop", path)
                dropped += 1
        for digest in partial - rows.keys():
            if not in_use(digest) and index.find(digest) is None:
                disk.unlink("object.drop", home.partial / folder / digest)
                dropped += 1
        for digest in rows.keys() - complete - partial:
            if not in_use(digest) and not _exists(home, folder, digest):
                index.forget(digest)
                dropped_rows += rows[digest].present_bytes
    return Findings(adopted, dropped, dropped_rows)


def _settled_names(directory: os.PathLike[str], started: float) -> set[str]:
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries if len(entry.name) == 40 and entry.stat().st_mtime < started}


def _exists(home: CacheDirectory, folder: str, digest: str) -> bool:
    return (home.objects / folder / digest).exists() or (home.partial / folder / digest).exists()


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
