"""Capacity: marks, pins, reservations, partial objects, and files larger than the cache."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import DiskSpace, LocalDisk
from csi_driver.cache.eviction import EvictionRow, choose_victims, uses_of
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.reservations import Reservations
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.conditions import CACHE_DISK_FULL, CACHE_INODES_EXHAUSTED, Condition
from csi_driver.model.errors import CacheDiskFull, CacheOvercommitted
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import MIB, ChunkStoreSettings

LIMIT = 20 * MIB


def opened(path: Path, high: float = 1, low: float = 1) -> ChunkStore:
    return ChunkStore(
        ChunkStoreSettings(
            directory=path, limit_bytes=LIMIT, free_floor_bytes=0, high_watermark=high, low_watermark=low
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    store = opened(tmp_path)
    yield store
    store.close()


def version(key: str, size_bytes: int = MIB) -> ObjectVersion:
    return ObjectVersion("d", "e", "b", key, "etag", size_bytes)


def add(store: ChunkStore, key: str, dataset: int = 1, size_bytes: int = MIB) -> None:
    store.advance(size_bytes, dataset)
    store.add_whole(version(key, size_bytes), [memoryview(bytes(size_bytes))], dataset).release()


def there(store: ChunkStore, prefix: str, count: int = 40) -> list[int]:
    return [number for number in range(count) if store.is_complete(version(f"{prefix}{number}"))]


def write(file: ObjectFile, chunk: int) -> None:
    part = memoryview(bytes(CHUNK_BYTES))
    file.write_chunk(chunk, [part], crc32c.crc32c(part))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


# -- marks --


def test_above_the_high_mark_objects_are_evicted_in_the_background_down_to_the_low_one(tmp_path: Path) -> None:
    store = opened(tmp_path, high=0.8, low=0.5)
    for number in range(17):
        add(store, f"a{number}")
    add(store, "last")
    assert eventually(lambda: store.used_bytes <= LIMIT // 2 + MIB)
    assert store.used_bytes >= LIMIT // 2 - MIB, "no more than necessary was evicted"
    store.close()


def test_below_the_high_mark_nothing_is_evicted(tmp_path: Path) -> None:
    store = opened(tmp_path, high=0.8, low=0.5)
    for number in range(16):
        add(store, f"a{number}")
    store.close()
    assert store.evicted_objects == 0


# -- inodes, and others on the disk --


class SmallDisk(LocalDisk):
    """A file system of its own numbers: those of the cache's files, and of what others take."""

    def __init__(self, total_bytes: int, total_inodes: int) -> None:
        self.total_bytes, self.total_inodes = total_bytes, total_inodes
        self.taken_bytes = self.taken_inodes = 0
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()  # guards _files

    def create_new(self, label: str, path: Path | str) -> int | None:
        descriptor = super().create_new(label, path)
        with self._lock:
            self._files[os.path.basename(path)] = 0
        return descriptor

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        super().write(label, descriptor, buffers, offset, cached=cached)
        with self._lock:
            self._files[os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))] = sum(map(len, buffers))

    def unlink(self, label: str, path: Path | str) -> None:
        super().unlink(label, path)
        with self._lock:
            self._files.pop(os.path.basename(path), None)

    def space(self, path: Path | str) -> DiskSpace:
        with self._lock:
            free_bytes = self.total_bytes - self.taken_bytes - sum(self._files.values())
            free_inodes = self.total_inodes - self.taken_inodes - len(self._files)
        return DiskSpace(self.total_bytes, max(0, free_bytes), self.total_inodes, max(0, free_inodes))


def store_on(disk: SmallDisk, path: Path, **settings: Any) -> ChunkStore:
    return ChunkStore(ChunkStoreSettings(directory=path, free_floor_bytes=0, **settings), disk)


@pytest.mark.promise("S275")
def test_objects_are_evicted_when_the_inodes_run_out_before_the_bytes(tmp_path: Path) -> None:
    disk = SmallDisk(total_bytes=1 << 30, total_inodes=1000)
    store = store_on(disk, tmp_path)
    for number in range(2000):
        add(store, f"a{number}", size_bytes=1000)
        if number % 100 == 0:
            assert disk.space(tmp_path).free_inodes >= 100, "a tenth of the inodes stays free"
    assert store.accepts_writes
    assert store.evicted_objects > 1000
    assert store.used_bytes > 500 * 1000, "and no more than necessary was evicted"
    assert store.conditions(1) == []
    store.close()


@pytest.mark.promise("S276")
@pytest.mark.parametrize("what", ["inodes", "bytes"])
def test_objects_are_evicted_for_others_on_the_disk_without_any_write(tmp_path: Path, what: str) -> None:
    disk = SmallDisk(total_bytes=400 * MIB, total_inodes=1000)
    store = ChunkStore(ChunkStoreSettings(directory=tmp_path, free_floor_bytes=40 * MIB), disk)
    for number in range(100):
        add(store, f"a{number}", size_bytes=100_000)
    store.checkpoint()
    assert store.evicted_objects == 0
    disk.taken_inodes, disk.taken_bytes = (850, 0) if what == "inodes" else (0, 350 * MIB)
    assert eventually(lambda: store.checkpoint() is None and store.evicted_objects > 0)
    floor = store.floor
    space = disk.space(tmp_path)
    assert eventually(lambda: disk.space(tmp_path).free_inodes >= floor.inodes(space))
    assert eventually(lambda: disk.space(tmp_path).free_bytes >= floor.count_bytes)
    store.close()


@pytest.mark.promise("S277")
@pytest.mark.parametrize(("what", "condition"), [("inodes", CACHE_INODES_EXHAUSTED), ("bytes", CACHE_DISK_FULL)])
def test_a_disk_that_others_have_filled_is_in_the_condition_until_they_free_it(
    tmp_path: Path, what: str, condition: Condition
) -> None:
    disk = SmallDisk(total_bytes=400 * MIB, total_inodes=1000)
    store = ChunkStore(ChunkStoreSettings(directory=tmp_path, free_floor_bytes=40 * MIB), disk)
    add(store, "before", size_bytes=1000)
    disk.taken_inodes, disk.taken_bytes = (950, 0) if what == "inodes" else (0, 390 * MIB)
    assert eventually(lambda: store.checkpoint() is None and store.conditions(1) == [condition])
    assert store.conditions() == [condition], "it is one of the node"
    with pytest.raises(CacheDiskFull, match="are to stay free"):
        fill(store)
    store.checkpoint()
    assert store.conditions(1) == [condition]
    disk.taken_inodes = disk.taken_bytes = 0
    store.checkpoint()
    assert store.conditions(1) == []
    store.close()


def fill(store: ChunkStore) -> None:
    for number in range(200):
        add(store, f"a{number}", size_bytes=MIB)


def test_a_file_system_without_a_number_of_inodes_has_enough(tmp_path: Path) -> None:
    disk = SmallDisk(total_bytes=1 << 30, total_inodes=0)
    store = store_on(disk, tmp_path)
    for number in range(200):
        add(store, f"a{number}", size_bytes=1000)
    store.checkpoint()
    assert (store.evicted_objects, store.conditions(1)) == (0, [])
    store.close()


# -- what stays --


@pytest.mark.promise("S47")
def test_an_object_that_a_view_links_is_never_evicted(store: ChunkStore, tmp_path: Path) -> None:
    add(store, "linked")
    digest = version("linked").digest(CHUNK_BYTES)
    os.link(tmp_path / "objects" / digest[:2] / digest, tmp_path / "view")
    for number in range(40):
        add(store, f"a{number}")
    assert store.is_complete(version("linked"))
    (tmp_path / "view").unlink()
    for number in range(40):
        add(store, f"b{number}", dataset=2)
    assert not store.is_complete(version("linked"))


def test_a_cache_full_of_links_refuses_writes_and_breaks_nothing(store: ChunkStore, tmp_path: Path) -> None:
    for number in range(20):
        add(store, f"a{number}")
        digest = version(f"a{number}").digest(CHUNK_BYTES)
        os.link(tmp_path / "objects" / digest[:2] / digest, tmp_path / f"view-{number}")
    with pytest.raises(CacheDiskFull):
        add(store, "one too many")
    assert there(store, "a") == list(range(20))


@pytest.mark.promise("S47")
def test_reserved_bytes_are_evicted_for_their_own_dataset_and_for_no_other(store: ChunkStore) -> None:
    for number in range(10):
        add(store, f"a{number}", dataset=1)
    store.reservations.reserve("mount", 1, 6 * MIB)
    for epoch in range(3):
        for number in range(40):
            add(store, f"b{epoch}-{number}", dataset=2)
    assert len(there(store, "a")) == 6
    store.reservations.end("mount")
    for number in range(40):
        add(store, f"c{number}", dataset=2)
    assert there(store, "a") == []


def test_a_dataset_that_reserved_the_whole_cache_still_evicts_for_itself(store: ChunkStore) -> None:
    store.reservations.reserve("mount", 1, LIMIT)
    for number in range(40):
        add(store, f"a{number}", dataset=1)
    assert len(there(store, "a")) >= 19
    with pytest.raises(CacheDiskFull):
        add(store, "of another", dataset=2)


def test_reservations_beyond_the_limit_are_refused_with_the_numbers() -> None:
    reservations = Reservations(100)
    reservations.reserve("one", 1, 60)
    with pytest.raises(CacheOvercommitted, match=r"50 bytes.* 60 of the cache's 100 .*at most 40"):
        reservations.reserve("two", 2, 50)
    reservations.reserve("two", 2, 40)
    reservations.reserve("same dataset", 1, 60)
    reservations.end("one")
    reservations.end("same dataset")
    reservations.reserve("three", 3, 60)


def test_a_reservation_that_was_granted_before_is_kept_whatever_the_limit_is_now() -> None:
    reservations = Reservations(100)
    reservations.reserve("adopted", 1, 150, adopted=True)
    assert list(reservations.protected_from(2)) == [{1: 150}]


# -- partial objects --


@pytest.mark.promise("S49")
def test_unused_partial_objects_are_evicted_and_leave_no_file(store: ChunkStore, tmp_path: Path) -> None:
    for number in range(4):
        file = store.open_partial(version(f"part{number}", 9 * MIB), 1)
        for chunk in range(4):
            write(file, chunk)
        file.release()
    assert store.used_bytes == 16 * MIB
    for number in range(40):
        add(store, f"b{number}", dataset=2)
    assert [name for _, _, names in os.walk(tmp_path / "partial") for name in names] == []
    assert store.used_bytes <= LIMIT
    assert all(store.present_bytes(version(f"part{number}", 9 * MIB)) == 0 for number in range(4))


def test_a_file_without_a_byte_is_evicted_first(store: ChunkStore, tmp_path: Path) -> None:
    store.open_partial(version("empty", 9 * MIB), 1).release()
    for number in range(21):
        add(store, f"a{number}")
    assert [name for _, _, names in os.walk(tmp_path / "partial") for name in names] == []


def test_a_partial_object_that_is_open_stays(store: ChunkStore) -> None:
    file = store.open_partial(version("part", 9 * MIB), 1)
    write(file, 3)
    for number in range(40):
        add(store, f"b{number}", dataset=2)
    assert file.is_present(3)
    write(file, 4)
    file.release()
    assert store.present_bytes(version("part", 9 * MIB)) == 2 * MIB


# -- files larger than the cache --


def test_a_file_larger_than_the_cache_takes_free_space_and_evicts_nothing(store: ChunkStore) -> None:
    for number in range(10):
        add(store, f"a{number}")
    file = store.open_partial(version("giant", 50 * MIB), 2)
    for chunk in range(50):
        write(file, chunk)
    assert there(store, "a") == list(range(10))
    assert file.passing
    assert 8 * MIB <= file.present_bytes() <= 10 * MIB
    assert store.used_bytes <= LIMIT
    assert store.accepts_writes, "others are still cached"
    file.release()


def test_a_file_larger_than_the_cache_gets_the_space_of_an_abandoned_dataset(store: ChunkStore) -> None:
    for number in range(20):
        add(store, f"a{number}", dataset=1)
    store.advance(30 * MIB, 2)
    file = store.open_partial(version("giant", 50 * MIB), 2)
    for chunk in range(50):
        write(file, chunk)
    assert file.present_bytes() >= 18 * MIB
    file.release()


# -- the policy --

rows = st.builds(
    EvictionRow,
    digest=st.uuids().map(str),
    present_bytes=st.integers(0, 10),
    dataset=st.integers(0, 3),
    first_use=st.integers(0, 50),
    last_use=st.integers(0, 100),
    gap=st.integers(0, 60),
)


@given(
    st.lists(rows, max_size=30, unique_by=lambda row: row.digest),
    st.integers(1, 200),
    st.dictionaries(st.integers(0, 3), st.integers(0, 100)),
    st.sets(st.integers(0, 3)),
)
def test_neither_reserved_nor_pinned_bytes_are_chosen_and_enough_of_the_others(
    candidates: list[EvictionRow], need: int, reserved: dict[int, int], pinned: set[int]
) -> None:
    """All rows of some datasets are pinned."""
    uses = uses_of(candidates)
    victims = choose_victims(
        iter(candidates), need, 150, uses, reserved=reserved, pinned=lambda row: row.dataset in pinned
    )
    assert not [victim for victim in victims if victim.dataset in pinned]
    for dataset, use in uses.items():
        gone = sum(victim.present_bytes for victim in victims if victim.dataset == dataset)
        assert use.cached_bytes - gone >= min(use.cached_bytes, reserved.get(dataset, 0))
    free = sum(row.present_bytes for row in candidates if row.dataset not in pinned and not reserved.get(row.dataset))
    assert sum(victim.present_bytes for victim in victims) >= min(need, free)


@given(st.lists(rows, max_size=40, unique_by=lambda row: row.digest), st.integers(1, 200))
def test_rows_that_come_one_by_one_give_the_same_victims_as_a_list(candidates: list[EvictionRow], need: int) -> None:
    assert choose_victims(iter(candidates), need, 150, uses_of(candidates)) == choose_victims(candidates, need, 150)
