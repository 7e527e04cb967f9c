"""By which way bytes are written to object files: a pure function.

A page of the page cache costs a copy, and the place of another page. It is worth that for bytes that are read again
from memory: those that a reader waits for, and those of datasets that memory can hold. Bytes that the daemon holds for
their reader need none.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

MEMORY_SHARE = 0.5
"""A dataset of more than this share of the memory is not held by the page cache: beside an object file's page is that
of a mount, and others need memory too."""


class WritePath(Enum):
    """How bytes reach the disk."""

    CACHED = "cached"
    """By the page cache, where they stay."""
    DROPPED = "dropped"
    """By the page cache, which drops them once they are written (RWF_DONTCACHE)."""
    DIRECT = "direct"
    """Past the page cache (O_DIRECT)."""


class DiskTraits(NamedTuple):
    """Of the cache disk, and of the bytes: a part of a file that a thread of a warmup writes alone."""

    direct: bool
    """Whether direct writes are possible."""
    fast: bool
    """Whether a first epoch from the disk is about as fast as the store: else pages of the page cache are worth more
    than the copies that they cost."""


def choose(
    *,
    for_warmup: bool,
    read_share: float,
    dataset_bytes: int,
    memory_bytes: int,
    disk: DiskTraits,
    held: bool = False,
) -> WritePath:
    """The way of some bytes of a dataset of so many, on a machine (or in a container) with so much memory.
    ``read_share`` of them were passed to readers from memory when they were received; the others, of a fetch for
    readers, will be read from the file soon, or from the daemon's memory, which has ``held`` them for that."""
    oversize = dataset_bytes > MEMORY_SHARE * memory_bytes
    if disk.direct and disk.fast and held:
        return WritePath.DIRECT
    if for_warmup and disk.direct and (oversize or (disk.fast and not read_share)):
        return WritePath.DIRECT
    if oversize and (for_warmup or read_share >= 1):
        return WritePath.DROPPED
    return WritePath.CACHED


def keeps_whole(*, for_warmup: bool, dataset_bytes: int, memory_bytes: int) -> bool:
    """Whether a small object that is written at once stays in the page cache. None is written directly: a write that
    waits for the disk takes longer than the fetch."""
    disk = DiskTraits(direct=False, fast=True)
    path = choose(
        for_warmup=for_warmup, read_share=0, dataset_bytes=dataset_bytes, memory_bytes=memory_bytes, disk=disk
    )
    return path is WritePath.CACHED
