"""Far more free space than a warmup needs is no reason to ask the disk before each object."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import DiskSpace, LocalDisk
from csi_driver.model.errors import CacheDiskFull
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import GIB, MIB, ChunkStoreSettings

LARGE = DiskSpace(total_bytes=1000 * GIB, free_bytes=500 * GIB, total_inodes=1_000_000, free_inodes=900_000)


class _CountingDisk(LocalDisk):
    def __init__(self, space: DiskSpace) -> None:
        self.reported, self.asked = space, 0

    def space(self, path: Path | str) -> DiskSpace:
        self.asked += 1
        return self.reported


def store_on(directory: Path, disk: LocalDisk, limit_bytes: int = 400 * GIB) -> ChunkStore:
    settings = ChunkStoreSettings(directory=directory, limit_bytes=limit_bytes, free_floor_bytes=GIB)
    return ChunkStore(settings, disk)


def test_a_cache_with_much_space_answers_without_the_disk(tmp_path: Path) -> None:
    disk = _CountingDisk(LARGE)
    store = store_on(tmp_path, disk)
    asked = disk.asked
    assert all(store.is_roomy(MIB) for _ in range(100))
    assert disk.asked == asked
    store.close()


@pytest.mark.parametrize(
    "space",
    [
        lambda: DiskSpace(1000 * GIB, 2 * GIB, 1_000_000, 900_000),
        lambda: DiskSpace(1000 * GIB, 500 * GIB, 1_000_000, 400_000),
    ],
    ids=["bytes", "inodes"],
)
def test_a_disk_that_is_about_full_is_not_roomy(tmp_path: Path, space: Callable[[], DiskSpace]) -> None:
    disk = _CountingDisk(LARGE)
    store = store_on(tmp_path, disk)
    assert store.is_roomy(MIB)
    disk.reported = space()
    store.checkpoint()  # once a second
    assert not store.is_roomy(MIB)
    store.close()


def test_a_file_system_without_a_number_of_inodes_is_roomy(tmp_path: Path) -> None:
    store = store_on(tmp_path, _CountingDisk(DiskSpace(1000 * GIB, 500 * GIB, 0, 0)))
    assert store.is_roomy(MIB)
    store.close()


def test_a_cache_at_its_limit_is_not_roomy(tmp_path: Path) -> None:
    store = store_on(tmp_path, _CountingDisk(LARGE), limit_bytes=20 * MIB)
    version = ObjectVersion("d", "e", "b", "key", "etag", MIB)
    store.add_whole(version, [memoryview(bytes(MIB))]).release()
    assert not store.is_roomy(20 * MIB)
    store.close()


def test_a_disk_that_refused_a_write_is_not_roomy(tmp_path: Path) -> None:
    store = store_on(tmp_path, _CountingDisk(LARGE))
    store.note_failure(CacheDiskFull("full"))
    assert not store.is_roomy(MIB)
    store.close()
