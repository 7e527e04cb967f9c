"""The open-file cache: an idle open has one owner, is closed in the end, and never keeps an eviction from its space."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.open_file_cache import IDLE_S, MOST_IDLE, IdlePause, OpenFileCache
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import CacheDiskFull
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.settings import MIB, ChunkStoreSettings

LIMIT = 20 * MIB


def test_an_idle_open_is_taken_by_one_reader() -> None:
    cache: OpenFileCache[str] = OpenFileCache()
    assert cache.put(7, None, "open") is None
    assert cache.take(7) == "open"
    assert cache.take(7) is None


def test_of_two_opens_of_a_node_the_later_is_cached_and_the_earlier_returned_for_its_close() -> None:
    cache: OpenFileCache[str] = OpenFileCache()
    cache.put(7, None, "first")
    assert cache.put(7, None, "second") == "first"
    assert cache.take(7) == "second"


def test_expired_opens_are_returned_and_the_others_stay() -> None:
    now = [0.0]
    cache: OpenFileCache[str] = OpenFileCache(clock=lambda: now[0])
    cache.put(1, None, "old")
    now[0] = IDLE_S + 1
    cache.put(2, None, "young")
    assert cache.take_expired() == ["old"]
    assert cache.take(2) == "young"


def test_an_open_that_is_used_again_and_again_does_not_expire() -> None:
    now = [0.0]
    cache: OpenFileCache[str] = OpenFileCache(clock=lambda: now[0])
    cache.put(1, None, "busy")
    cache.put(2, None, "unused")
    now[0] = IDLE_S
    busy = cache.take(1)
    assert busy is not None
    cache.put(1, None, busy)
    now[0] = IDLE_S + 1
    assert cache.take_expired() == ["unused"]


def test_no_more_opens_than_the_limit_are_cached() -> None:
    cache: OpenFileCache[int] = OpenFileCache()
    for node in range(MOST_IDLE):
        assert cache.put(node, None, node) is None
    assert cache.put(MOST_IDLE, None, MOST_IDLE) == MOST_IDLE


def test_an_open_that_comes_back_after_the_end_of_the_mount_is_returned_for_its_close() -> None:
    """A read that waited for the store is answered when the mount has gone."""
    cache: OpenFileCache[str] = OpenFileCache()
    cache.put(1, None, "before")
    assert cache.close() == ["before"]
    assert cache.put(2, None, "after") == "after"


def test_while_evictions_fall_short_no_open_stays_idle() -> None:
    now = [0.0]
    pause = IdlePause()
    cache: OpenFileCache[str] = OpenFileCache(pause, lambda: now[0])
    cache.put(1, None, "before")
    pause.until = 2.0
    now[0] = 1.0
    assert cache.take_expired() == ["before"]
    assert cache.put(2, None, "during") == "during"
    now[0] = 2.0
    assert cache.put(3, None, "after") is None


# -- with eviction --


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    store = ChunkStore(
        ChunkStoreSettings(directory=tmp_path, limit_bytes=LIMIT, free_floor_bytes=0, high_watermark=1, low_watermark=1)
    )
    yield store
    store.close()


def version(key: str) -> ObjectVersion:
    return ObjectVersion("d", "e", "b", key, "etag", MIB)


def add(store: ChunkStore, key: str) -> ObjectFile:
    store.advance(MIB, 1)
    return store.add_whole(version(key), [memoryview(bytes(MIB))], 1)


def test_eviction_releases_the_files_of_idle_opens_itself(store: ChunkStore) -> None:
    caches = [store.add_open_file_cache() for _ in range(2)]
    for node in range(20):
        caches[node % 2].put(node, add(store, f"a{node}"), "open")
    add(store, "one more").release()
    assert store.is_complete(version("one more"))
    assert store.evicted_objects > 0
    assert [cache.take(node) for cache in caches for node in range(20)] == [None] * 40


def test_eviction_leaves_files_with_a_reader_and_opens_that_only_their_owner_can_close(store: ChunkStore) -> None:
    cache = store.add_open_file_cache()
    read = add(store, "read")
    partial = store.open_partial(version("partial"), 1)
    cache.put(1, None, partial)
    for number in range(40):
        add(store, f"a{number}").release()
    assert store.is_complete(version("read"))
    assert cache.take(1) is partial
    read.release()
    partial.release()


def test_a_write_is_not_refused_though_readers_make_files_idle_again_while_the_index_is_scanned(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = store.add_open_file_cache()
    read = [add(store, f"a{number}") for number in range(20)]
    scan = store._index.eviction_rows

    def scan_while_files_are_closed():  # type: ignore[no-untyped-def]
        while read:
            cache.put(len(read), read.pop(), "open")
        return scan()

    monkeypatch.setattr(store._index, "eviction_rows", scan_while_files_are_closed)
    add(store, "one more").release()
    assert store.is_complete(version("one more"))


def test_a_write_is_refused_when_every_file_has_a_reader(store: ChunkStore) -> None:
    read = [add(store, f"a{number}") for number in range(20)]
    with pytest.raises(CacheDiskFull):
        add(store, "one more")
    for file in read:
        file.release()


def test_readers_and_evictions_never_release_the_same_use_twice(store: ChunkStore) -> None:
    cache = store.add_open_file_cache()
    stop = threading.Event()

    def evict() -> None:
        while not stop.is_set():
            store._in_use.release_idle()

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        file = add(store, "a")
        for _ in range(500):
            surplus = cache.put(1, file, file)
            assert surplus is None
            taken = cache.take(1)
            if taken is None:
                found = store.find(version("a"), 1)
                assert found is not None
                file = found
            assert has_its_bytes(file)
    finally:
        stop.set()
        thread.join()
    file.release()
    assert not store._in_use.digests


def has_its_bytes(file: ObjectFile) -> bool:
    buffer = memoryview(bytearray(b"x" * MIB))
    return file.read(ByteRange(0, MIB), buffer) == MIB and not any(buffer[:100])
