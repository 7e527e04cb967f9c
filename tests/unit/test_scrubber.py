"""The scrubber drops damaged chunks, and no others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import crc32c
import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES
from tests.support.faulty_disk import FaultyDisk, flip_a_bit
from tests.unit.test_chunk_store import BYTES, add_chunk, crash_the_machine, read_all, settings, version


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def store(tmp_path: Path, disk: FaultyDisk) -> Iterator[ChunkStore]:
    store = ChunkStore(settings(tmp_path).model_copy(update={"scrub_bytes_per_s": 0}), disk)
    yield store
    store.close()


def path_of(directory: Path, key: str = "a", kind: str = "objects") -> Path:
    digest = version(key).digest(CHUNK_BYTES)
    return directory / kind / digest[:2] / digest


def add(store: ChunkStore, key: str = "a") -> None:
    store.add_whole(version(key), [memoryview(BYTES)]).release()


def scrub(store: ChunkStore) -> None:
    store._index.flush()
    store.scrubber.scrub()


def test_good_files_are_not_changed(store: ChunkStore) -> None:
    for key in "abc":
        add(store, key)
    scrub(store)
    assert store.bad_chunks == 0
    assert store.scrubber.scrubbed_bytes == 3 * len(BYTES)
    assert [read_all(store, version(key)) for key in "abc"] == [BYTES] * 3


@pytest.mark.promise("S64")
def test_a_damaged_chunk_of_a_complete_file_is_dropped_and_the_others_stay(store: ChunkStore, tmp_path: Path) -> None:
    add(store)
    flip_a_bit(path_of(tmp_path), CHUNK_BYTES + 7)
    scrub(store)
    assert store.bad_chunks == 1
    assert store.find(version()) is None
    assert store.used_bytes == store.present_bytes(version()) == len(BYTES) - CHUNK_BYTES
    add_chunk(store, version(), 1)
    assert read_all(store, version()) == BYTES


@pytest.mark.promise("S64")
def test_a_damaged_chunk_of_a_partial_file_is_dropped(store: ChunkStore, tmp_path: Path) -> None:
    for chunk in (0, 1):
        add_chunk(store, version(), chunk)
    flip_a_bit(path_of(tmp_path, kind="partial"), 99)
    scrub(store)
    file = store.open_partial(version())
    assert (file.is_present(0), file.is_present(1)) == (False, True)
    file.release()
    assert store.used_bytes == CHUNK_BYTES


def test_a_chunk_that_cannot_be_read_counts_as_bad(store: ChunkStore, disk: FaultyDisk) -> None:
    add(store)
    disk.labels = ("scrub.read",)
    scrub(store)
    assert store.bad_chunks == 3
    assert not store.is_complete(version())
    assert store.health.failures == 1


@pytest.mark.promise("S66")
def test_readers_keep_an_open_damaged_file_and_later_opens_fetch_it_again(store: ChunkStore, tmp_path: Path) -> None:
    held = store.add_whole(version(), [memoryview(BYTES)])
    flip_a_bit(path_of(tmp_path), 5)
    scrub(store)
    assert store.find(version()) is None
    assert os.fstat(held.descriptor).st_nlink == 0
    add(store)
    assert read_all(store, version()) == BYTES
    held.release()
    assert read_all(store, version()) == BYTES


@pytest.mark.promise("S66")
def test_a_damaged_file_in_a_view_is_reported(store: ChunkStore, tmp_path: Path) -> None:
    store.add_whole(version(), [memoryview(BYTES)], 77).release()
    os.link(path_of(tmp_path), tmp_path / "view")
    flip_a_bit(tmp_path / "view", 5)
    scrub(store)
    assert store.find(version()) is None
    assert store.health.damaged_views == {77: 1}


def test_a_file_with_a_damaged_chunk_map_is_dropped_without_an_error(store: ChunkStore, tmp_path: Path) -> None:
    add(store)
    store._index.flush()
    store._index._database.execute("UPDATE objects SET chunk_map = zeroblob(length(chunk_map))")
    store._index._database.commit()
    scrub(store)
    assert store._index.find(version().digest(CHUNK_BYTES)) is None
    assert read_all(store, version()) == BYTES


def test_a_pass_resumes_at_its_position(store: ChunkStore) -> None:
    for number in range(40):
        add(store, str(number))
    store._index.flush()
    digests = sorted(version(str(number)).digest(CHUNK_BYTES) for number in range(40))
    store.scrubber.scrub("80")
    assert store.scrubber.scrubbed_bytes == len(BYTES) * sum(digest >= "80" for digest in digests)
    assert store._index.fact("scrub_cursor") == ""


@pytest.mark.promise("S65")
def test_unverified_files_are_verified_after_a_crash_and_crash_recovery_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = ChunkStore(settings(tmp_path))
    for key in "abc":
        add(first, key)
    add_chunk(first, version("d"), 1)
    first.close()
    crash_the_machine(tmp_path)
    flip_a_bit(path_of(tmp_path, "b"), 3)
    second = ChunkStore(settings(tmp_path).model_copy(update={"scrub_bytes_per_s": 0}))
    try:
        assert second._crash_recovery.has_unverified
        second._crash_recovery._recovery.join()
        with caplog.at_level(logging.INFO, "csi_driver.cache.scrubber"):
            second.scrubber.verify_after_crash()
        assert not second._crash_recovery.has_unverified
        assert "all object files are verified" in caplog.text
        assert second.bad_chunks == 1
        assert [second.is_complete(version(key)) for key in "abc"] == [True, False, True]
        assert second.present_bytes(version("d")) == CHUNK_BYTES
        assert read_all(second, version("a")) == BYTES
    finally:
        second.close()


@pytest.mark.promise("S588")
def test_one_object_is_verified_at_once_complete_partial_or_open(store: ChunkStore, tmp_path: Path) -> None:
    add(store, "complete")
    add_chunk(store, version("partial"), 0)
    held = store.open_partial(version("open"))
    try:
        held.write_chunk(0, [memoryview(BYTES)[:CHUNK_BYTES]], crc32c.crc32c(BYTES[:CHUNK_BYTES]))
        found = [store.verify(version(key)) for key in ("complete", "partial", "open", "none")]
        assert [one.checked_bytes for one in found] == [len(BYTES), CHUNK_BYTES, CHUNK_BYTES, 0]
        assert [one.bad_chunks for one in found] == [0, 0, 0, 0]
        flip_a_bit(path_of(tmp_path, "open", "partial"), 9)
        assert store.verify(version("open")).bad_chunks == 1
        assert not path_of(tmp_path, "open", "partial").exists()
    finally:
        held.release()
    flip_a_bit(path_of(tmp_path, "complete"), 9)
    assert store.verify(version("complete")).bad_chunks == 1
    assert store.verify(version("complete")).bad_chunks == 0
    assert store.present_bytes(version("complete")) == len(BYTES) - CHUNK_BYTES
    assert store.bad_chunks == 2


@pytest.mark.promise("S588")
def test_what_a_crash_of_the_machine_damaged_is_a_finding(tmp_path: Path) -> None:
    first = ChunkStore(settings(tmp_path))
    for key in "ab":
        add(first, key)
    first.close()
    crash_the_machine(tmp_path)
    flip_a_bit(path_of(tmp_path, "b"), 3)
    second = ChunkStore(settings(tmp_path).model_copy(update={"scrub_bytes_per_s": 0}))
    try:
        second._crash_recovery._recovery.join()
        found = [second.verify(version(key)) for key in "ab"]
        assert [one.bad_chunks for one in found] == [0, 1]
        assert [second.is_complete(version(key)) for key in "ab"] == [True, False]
    finally:
        second.close()


@pytest.mark.promise("S586")
def test_objects_are_evicted_by_name_unless_they_are_open_or_linked(store: ChunkStore, tmp_path: Path) -> None:
    for key in ("gone", "open", "linked"):
        add(store, key)
    add_chunk(store, version("partial"), 0)
    os.link(path_of(tmp_path, "linked"), tmp_path / "view")
    held = store.find(version("open"))
    assert held is not None
    evicted, kept = store.evict(version(key) for key in ("gone", "open", "linked", "partial", "none"))
    assert (evicted.count_bytes, evicted.files) == (len(BYTES) + CHUNK_BYTES, 2)
    assert (kept.count_bytes, kept.files) == (2 * len(BYTES), 2)
    assert store.used_bytes == 2 * len(BYTES)
    assert [store.present_bytes(version(key)) for key in ("gone", "partial")] == [0, 0]
    assert store.evicted_objects == 2
    held.release()
