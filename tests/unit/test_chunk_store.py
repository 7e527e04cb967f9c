"""The chunk store: objects after a restart, refusals, and what a crash leaves."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cache.chunk_map import ChunkMap
from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import LocalDisk, disk_error
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_count
from csi_driver.model.errors import (
    CacheDirectoryInUse,
    CacheDirectoryMissing,
    CacheDirectoryUnusable,
    CacheDiskFailed,
    CacheDiskFull,
    DescriptorsExhausted,
    ManifestInvalid,
)
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import ChunkStoreSettings

BYTES = bytes(range(256)) * 8192 + b"tail"


def settings(path: Path, limit_bytes: int = 1 << 30) -> ChunkStoreSettings:
    """Without watermarks: nothing is evicted before it has to be."""
    return ChunkStoreSettings(
        directory=path, limit_bytes=limit_bytes, free_floor_bytes=0, high_watermark=1, low_watermark=1
    )


def version(key: str = "a", size_bytes: int = len(BYTES), domain: str = "d") -> ObjectVersion:
    return ObjectVersion(domain, "e", "b", key, "etag", size_bytes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    store = ChunkStore(settings(tmp_path))
    yield store
    store.close()


def add_chunk(store: ChunkStore, wanted: ObjectVersion, chunk: int, data: bytes = BYTES) -> None:
    file = store.open_partial(wanted)
    part = memoryview(data)[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
    file.write_chunk(chunk, [part], crc32c.crc32c(part))
    file.release()


def read_all(store: ChunkStore, wanted: ObjectVersion) -> bytes:
    file = store.find(wanted)
    assert file is not None
    buffer = memoryview(bytearray(wanted.size_bytes))
    assert file.read(ByteRange(0, wanted.size_bytes), buffer) == wanted.size_bytes
    file.release()
    return bytes(buffer)


def test_an_object_added_whole_is_found_and_survives_a_restart(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version(), [memoryview(BYTES)]).release()
    assert read_all(store, version()) == BYTES
    store.close()
    again = ChunkStore(settings(tmp_path))
    assert read_all(again, version()) == BYTES
    assert again.used_bytes == len(BYTES)
    again.close()


def test_an_object_is_complete_with_its_last_chunk_and_not_before(store: ChunkStore) -> None:
    add_chunk(store, version(), 2)
    add_chunk(store, version(), 0)
    assert store.find(version()) is None
    assert store.present_bytes(version()) == CHUNK_BYTES + 4
    add_chunk(store, version(), 1)
    assert read_all(store, version()) == BYTES
    assert store.present_bytes(version()) == len(BYTES)


def test_chunks_of_a_partial_object_survive_a_restart(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    add_chunk(store, version(), 1)
    store.close()
    again = ChunkStore(settings(tmp_path))
    file = again.open_partial(version())
    assert [file.is_present(chunk) for chunk in range(3)] == [False, True, False]
    buffer = memoryview(bytearray(CHUNK_BYTES))
    file.read(ByteRange(CHUNK_BYTES, 2 * CHUNK_BYTES), buffer)
    assert bytes(buffer) == BYTES[CHUNK_BYTES : 2 * CHUNK_BYTES]
    file.release()
    again.close()


@pytest.mark.promise("S41")
def test_bytes_are_never_found_under_another_access_domain(store: ChunkStore) -> None:
    store.add_whole(version(domain="one"), [memoryview(BYTES)]).release()
    assert store.find(version(domain="two")) is None


def test_object_files_are_readable_by_all_users_and_writable_by_none(store: ChunkStore) -> None:
    file = store.add_whole(version(), [memoryview(BYTES)])
    assert os.fstat(file.descriptor).st_mode & 0o777 == 0o444
    file.release()


def test_a_truncated_object_file_is_fetched_again(store: ChunkStore, tmp_path: Path) -> None:
    store.add_whole(version(), [memoryview(BYTES)]).release()
    digest = version().digest(CHUNK_BYTES)
    path = tmp_path / "objects" / digest[:2] / digest
    path.chmod(0o600)
    os.truncate(path, 10)
    assert store.find(version()) is None
    assert not path.exists()


def crash_the_machine(directory: Path) -> None:
    """Makes the cache look like after a power cut: another boot id, no clean stop."""
    database = sqlite3.connect(directory / "index.sqlite")
    with database:
        database.execute("UPDATE facts SET value = 'another' WHERE name = 'boot_id'")
        database.execute("UPDATE facts SET value = 'no' WHERE name = 'clean'")
    database.close()


def test_after_a_machine_crash_good_bytes_are_trusted_only_once_verified(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version(), [memoryview(BYTES)]).release()
    store.close()
    crash_the_machine(tmp_path)
    again = ChunkStore(settings(tmp_path))
    assert again.find(version()) is None
    file = again.recover(version())
    assert file is not None
    file.release()
    assert read_all(again, version()) == BYTES
    again.close()


@pytest.mark.promise("S84")
@pytest.mark.parametrize("damage", [b"\0" * 64, b"old content"])
def test_after_a_machine_crash_bad_chunks_are_dropped_and_good_ones_kept(tmp_path: Path, damage: bytes) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version(), [memoryview(BYTES)]).release()
    store.close()
    digest = version().digest(CHUNK_BYTES)
    path = tmp_path / "objects" / digest[:2] / digest
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES + 100)
        file.write(damage)
    crash_the_machine(tmp_path)
    again = ChunkStore(settings(tmp_path))
    assert again.recover(version()) is None
    partial = again.open_partial(version())
    assert [partial.is_present(chunk) for chunk in range(3)] == [True, False, True]
    partial.release()
    again.close()


def test_a_damaged_index_is_replaced_and_the_cache_works(tmp_path: Path) -> None:
    ChunkStore(settings(tmp_path)).close()
    (tmp_path / "index.sqlite").write_bytes(b"not a database" * 1000)
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version(), [memoryview(BYTES)]).release()
    assert read_all(store, version()) == BYTES
    store.close()
    assert (tmp_path / "index.sqlite.damaged").exists()


def test_an_index_with_a_damaged_byte_in_its_schema_is_replaced(tmp_path: Path) -> None:
    """SQLite quotes the schema in its error message, which then is no UTF-8."""
    ChunkStore(settings(tmp_path)).close()
    index = tmp_path / "index.sqlite"
    data = index.read_bytes()
    assert data.count(b"CREATE TABLE objects") == 1
    index.write_bytes(data.replace(b"CREATE TABLE objects", b"CREATE TABL\xa0 objects"))
    ChunkStore(settings(tmp_path)).close()
    assert (tmp_path / "index.sqlite.damaged").exists()


# -- limits and disks that refuse --


def test_the_limit_is_kept_and_transient_objects_are_evicted_for_the_next(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path, limit_bytes=3 * len(BYTES)))
    for key in "abcdef":
        store.advance(len(BYTES))
        store.add_whole(version(key), [memoryview(BYTES)]).release()
        assert store.used_bytes <= 3 * len(BYTES)
    assert [key for key in "abcdef" if store.is_complete(version(key))] == ["a", "b", "f"]
    store.close()


@pytest.mark.promise("S44", "S45")
def test_an_object_in_use_is_never_evicted_and_the_store_refuses_writes_instead(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path, limit_bytes=len(BYTES) + 10))
    file = store.add_whole(version("a"), [memoryview(BYTES)])
    with pytest.raises(CacheDiskFull):
        store.add_whole(version("b"), [memoryview(BYTES)])
    assert not store.accepts_writes
    assert read_all(store, version("a")) == BYTES
    file.release()
    store.close()


class BreakingDisk(LocalDisk):
    """Fails the step with the given label."""

    label = ""
    number = errno.ENOSPC

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        if label == self.label:
            raise disk_error(label, OSError(self.number, os.strerror(self.number)))
        super().write(label, descriptor, buffers, offset, cached=cached)

    def rename(self, label: str, source: Path | str, target: Path | str) -> None:
        if label == self.label:
            raise disk_error(label, OSError(self.number, os.strerror(self.number)))
        super().rename(label, source, target)


@pytest.mark.promise("S30")
@pytest.mark.parametrize("label", ["chunk.write", "object.publish"])
@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, CacheDiskFull), (errno.EIO, CacheDiskFailed)])
def test_a_step_that_the_disk_refuses_leaves_no_object_and_no_file(
    tmp_path: Path, label: str, number: int, error: type[Exception]
) -> None:
    disk = BreakingDisk()
    disk.label, disk.number = label, number
    store = ChunkStore(settings(tmp_path), disk)
    with pytest.raises(error):
        store.add_whole(version(), [memoryview(BYTES)])
    assert store.find(version()) is None
    assert store.used_bytes == 0
    assert not [name for root in ("objects", "partial") for _, _, names in os.walk(tmp_path / root) for name in names]
    store.close()


# -- the directory --


@pytest.mark.promise("S57")
def test_a_missing_cache_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheDirectoryMissing, match="nowhere"):
        ChunkStore(settings(tmp_path / "nowhere"))


@pytest.mark.promise("S57")
def test_a_cache_directory_on_tmpfs_is_refused_and_left_empty() -> None:
    place = Path("/dev/shm") / f"hayloft-test-{os.getpid()}"
    place.mkdir()
    try:
        with pytest.raises(CacheDirectoryUnusable, match="tmpfs"):
            ChunkStore(settings(place))
        assert list(place.iterdir()) == []
    finally:
        place.rmdir()


@pytest.mark.promise("S56")
def test_a_second_daemon_on_the_same_directory_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    with pytest.raises(CacheDirectoryInUse, match=str(os.getpid())):
        ChunkStore(settings(tmp_path))
    store.close()
    ChunkStore(settings(tmp_path)).close()


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 99}')
    with pytest.raises(CacheDirectoryUnusable, match="format"):
        ChunkStore(settings(tmp_path))


# -- chunk maps --


@given(st.integers(0, 40 * CHUNK_BYTES), st.data())
def test_a_chunk_map_is_the_same_after_encoding(size_bytes: int, data: st.DataObject) -> None:
    chunk_map = ChunkMap(chunk_count(size_bytes))
    if chunk_count(size_bytes):
        for chunk in data.draw(st.sets(st.integers(0, chunk_count(size_bytes) - 1))):
            chunk_map.add(chunk, data.draw(st.integers(0, 2**32 - 1)))
    again = ChunkMap.decode(chunk_map.encode(), size_bytes)
    assert again.present == chunk_map.present
    assert again.checksums == chunk_map.checksums
    assert again.missing_count == chunk_map.missing_count


@given(st.binary(max_size=60), st.integers(0, 40 * CHUNK_BYTES))
def test_any_bytes_are_a_chunk_map_or_are_refused(data: bytes, size_bytes: int) -> None:
    try:
        chunk_map = ChunkMap.decode(data, size_bytes)
    except ManifestInvalid:
        return
    assert len(chunk_map.present) == chunk_count(size_bytes)


# -- after a kill --


def killed(directory: Path, lose: str) -> None:
    """Makes the index look like after a kill before its last batch was written."""
    database = sqlite3.connect(directory / "index.sqlite")
    with database:
        database.execute("UPDATE facts SET value = 'no' WHERE name = 'clean'")
        database.execute("DELETE FROM objects WHERE digest = ?", (bytes.fromhex(lose),))
    database.close()
    for root, _, names in os.walk(directory):
        for name in names:
            os.utime(Path(root) / name, (1, 1))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.promise("S83")
def test_a_complete_file_whose_row_was_lost_in_a_kill_is_adopted_and_counted(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version("a"), [memoryview(BYTES)]).release()
    store.add_whole(version("b"), [memoryview(BYTES)]).release()
    store.close()
    killed(tmp_path, version("a").digest(CHUNK_BYTES))
    again = ChunkStore(settings(tmp_path))
    assert read_all(again, version("a")) == BYTES
    assert eventually(lambda: again.used_bytes == 2 * len(BYTES))
    again.close()
    crash_the_machine(tmp_path)
    third = ChunkStore(settings(tmp_path))
    file = third.recover(version("a"))
    assert file is not None, "the adopted file got the checksums it has"
    file.release()
    third.close()


def test_a_partial_file_whose_row_was_lost_in_a_kill_is_removed(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    add_chunk(store, version("a"), 1)
    store.close()
    digest = version("a").digest(CHUNK_BYTES)
    killed(tmp_path, digest)
    path = tmp_path / "partial" / digest[:2] / digest
    assert path.exists()
    again = ChunkStore(settings(tmp_path))
    assert eventually(lambda: not path.exists())
    again.close()


def test_a_row_without_a_file_is_removed_and_its_bytes_are_no_longer_counted(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version("a"), [memoryview(BYTES)]).release()
    store.close()
    digest = version("a").digest(CHUNK_BYTES)
    (tmp_path / "objects" / digest[:2] / digest).unlink()
    killed(tmp_path, "00" * 20)
    again = ChunkStore(settings(tmp_path))
    assert eventually(lambda: again.used_bytes == 0)
    again.close()


def test_after_a_machine_crash_a_file_without_a_row_is_never_trusted(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version("a"), [memoryview(BYTES)]).release()
    store.close()
    digest = version("a").digest(CHUNK_BYTES)
    killed(tmp_path, digest)
    crash_the_machine(tmp_path)
    again = ChunkStore(settings(tmp_path))
    assert again.find(version("a")) is None
    assert again.recover(version("a")) is None
    again.close()


def test_with_a_torn_index_no_old_file_is_trusted(tmp_path: Path) -> None:
    store = ChunkStore(settings(tmp_path))
    store.add_whole(version("a"), [memoryview(BYTES)]).release()
    store.close()
    (tmp_path / "index.sqlite").write_bytes(b"torn" * 5000)
    again = ChunkStore(settings(tmp_path))
    assert again.find(version("a")) is None
    again.close()


def test_a_file_of_the_wrong_size_is_dropped_and_not_counted_any_more(store: ChunkStore, tmp_path: Path) -> None:
    store.add_whole(version(), [memoryview(BYTES)]).release()
    (path,) = (tmp_path / "objects").glob("*/*")
    os.truncate(path, 10)
    assert store.find(version()) is None
    assert store.used_bytes == 0


def test_a_partial_file_that_is_gone_is_not_counted_any_more(store: ChunkStore, tmp_path: Path) -> None:
    add_chunk(store, version(), 0)
    assert store.used_bytes == CHUNK_BYTES
    (path,) = (tmp_path / "partial").glob("*/*")
    path.unlink()
    store.open_partial(version()).release()
    assert store.used_bytes == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_descriptors_is_no_failure_of_the_disk(store: ChunkStore, number: int) -> None:
    error = disk_error("object.open", OSError(number, os.strerror(number)))
    assert isinstance(error, DescriptorsExhausted)
    for _ in range(100):
        store.note_failure(error)
    assert store.accepts_writes
    assert store.health.failures == 0
