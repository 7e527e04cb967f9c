"""The states of the caches before a measurement: how each is made, and how a wrong one is detected.

A state that was made before a measurement is checked by counters during it: the bytes that the store has sent, and the
bytes that the readers and the target have read from the disk. A figure whose state was not what its phase says is
kept, marked as invalid, with the reason.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hayloft_bench.results.model import Phase
from hayloft_bench.run.page_cache import cached_share, evict, write_out

COLD_SHARE = 0.95
"""A cold epoch has fetched at least this part of what it needs. Not all: the store raises its counter when a response
ends, and the last response may end after the last byte was read."""
CACHED_SHARE = 0.01
"""A warm or hot epoch has fetched at most this part: requests for metadata have bodies too."""
CACHED_BYTES = 256 << 10
HOT_SHARE = 0.05
"""A hot epoch has read at most this part from the disk."""
HOT_BYTES = 4 << 20
"""Programs and libraries whose pages were evicted with those of the data."""
DISK_SHARE = 0.80
"""A warm epoch has read at least this part from the disk."""
RESIDENT_SHARE = 0.02
LIMIT_SHARE, LIMIT_SLACK_BYTES = 1.15, 1 << 20
"""A cache may hold so much more than its limit: file systems round up to blocks, and eviction follows writing."""
SAMPLED_FILES = 64
PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Observed:
    """The counters of one measurement. None: not counted for this target, or not by this kernel."""

    phase: Phase
    needed_bytes: int
    """What the readers of this node need from the dataset."""
    origin_bytes: int | None
    disk_bytes: int | None
    resident_share: float | None = None
    """Of sampled files in the page cache, before."""
    cache_bytes: int | None = None
    limit_bytes: int | None = None


def objection(seen: Observed) -> str:
    """Why the figure does not belong to its phase; empty if it does."""
    return _CHECKS[seen.phase](seen)


def _cold(seen: Observed) -> str:
    if seen.resident_share is not None and seen.resident_share > RESIDENT_SHARE:
        return f"not cold: {seen.resident_share:.0%} of the files were in the page cache"
    if seen.origin_bytes is None:
        return _from_disk(seen, "cold")
    if seen.origin_bytes < COLD_SHARE * seen.needed_bytes:
        return f"not cold: the store sent {_megabytes(seen.origin_bytes)} of {_megabytes(seen.needed_bytes)} needed"
    return ""


def _warm(seen: Observed) -> str:
    return _from_store(seen, "warm") or _from_disk(seen, "warm")


def _hot(seen: Observed) -> str:
    most_bytes = max(HOT_BYTES, HOT_SHARE * seen.needed_bytes)
    if seen.disk_bytes is not None and seen.disk_bytes > most_bytes:
        return f"not hot: {_megabytes(seen.disk_bytes)} of {_megabytes(seen.needed_bytes)} came from the disk"
    return _from_store(seen, "hot")


def _restart(seen: Observed) -> str:
    """A restarted target may read metadata again, and from the disk what it had in memory."""
    return _from_store(seen, "restart")


def _small_cache(seen: Observed) -> str:
    if seen.limit_bytes is None or seen.cache_bytes is None:
        return ""
    if seen.cache_bytes > LIMIT_SHARE * seen.limit_bytes + LIMIT_SLACK_BYTES:
        return f"the cache held {_megabytes(seen.cache_bytes)}, more than its limit {_megabytes(seen.limit_bytes)}"
    return ""


def _from_store(seen: Observed, phase: str) -> str:
    most_bytes = max(CACHED_BYTES, CACHED_SHARE * seen.needed_bytes)
    if seen.origin_bytes is not None and seen.origin_bytes > most_bytes:
        sent = _megabytes(seen.origin_bytes)
        return f"not {phase}: the store sent {sent} though all of {_megabytes(seen.needed_bytes)} had been read before"
    return ""


def _from_disk(seen: Observed, phase: str) -> str:
    if seen.disk_bytes is not None and seen.disk_bytes < DISK_SHARE * seen.needed_bytes:
        return (
            f"not {phase}: only {_megabytes(seen.disk_bytes)} of {_megabytes(seen.needed_bytes)} came from the disk, "
            "the rest from memory"
        )
    return ""


_CHECKS = {"cold": _cold, "warm": _warm, "hot": _hot, "restart": _restart, "small-cache": _small_cache}


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


# -- making --------------------------------------------------------------------------------------------------------


def may_drop_page_cache() -> bool:
    """Whether this process may drop the page cache of the machine, which only root may."""
    return os.geteuid() == 0 and os.access("/proc/sys/vm/drop_caches", os.W_OK)


def drop_page_cache(directory: Path, files: Sequence[Path] = (), *, own_files: bool = False) -> None:
    """That of the machine; only the pages of the given files with ``own_files``, or where more is not allowed. Blocks
    until the dirty pages of ``directory``'s file system are on the disk, because dirty pages stay."""
    write_out(directory)
    evict(files)
    if not own_files and may_drop_page_cache():
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


def files_below(directory: Path) -> list[Path]:
    """Regular files, without those of file systems that are mounted below. Files that vanish meanwhile are left out."""
    found: list[Path] = []
    if not directory.is_dir():
        return found
    device = directory.stat().st_dev
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if _device_of(f"{folder}/{name}") == device]
        found += [path for name in names if (path := Path(folder, name)).is_file() and not path.is_symlink()]
    return found


def _device_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return None


def resident_share(files: Sequence[Path]) -> float:
    """The share of the files that is in the page cache: of all, or of the same sample each time."""
    if len(files) > SAMPLED_FILES:
        files = random.Random(SAMPLED_FILES).sample(list(files), SAMPLED_FILES)
    return cached_share(files)


def read_back(directory: Path) -> None:
    """Reads the store's own files into the page cache, so that the store's disk is not what is measured."""
    buffer = bytearray(PIECE_BYTES)
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
