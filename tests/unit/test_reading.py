"""Reads of one object: the right bytes, each chunk fetched once, every read answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import LocalDisk
from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import AccessDenied, CacheDiskFailed, HayloftError, Interrupted, ObjectChanged
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.reading.fetcher import DISK_READS, OTHERS_SHARE
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.daemons import wait_until
from tests.support.own_event_loop import OwnLoopCache
from tests.support.random_bytes import random_bytes
from tests.support.scripted_store import ScriptedStore

LARGE = random_bytes(1, 20 * CHUNK_BYTES + 12345)
SMALL = random_bytes(2, 110_000)


class ReadBench:
    """A read-through cache over a scripted store."""

    def __init__(
        self, directory: Path, limit_bytes: int = 1 << 30, disk: WatchedDisk | None = None, **reading: int
    ) -> None:
        self.origin = ScriptedStore({"large": LARGE, "small": SMALL, "empty": b""})
        self.disk = disk or WatchedDisk()
        settings = ChunkStoreSettings(directory=directory, limit_bytes=limit_bytes, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, disk)
        self.read_through_cache = OwnLoopCache(self.chunks, ReadingSettings(**reading))

    def open(self, key: str) -> OpenObject:
        result = self.try_open(key)
        if isinstance(result, HayloftError):
            raise result
        return result

    def try_open(self, key: str) -> OpenObject | HayloftError:
        result = waited(
            lambda answer: self.read_through_cache.open(ObjectSource(self.origin.version(key), self.origin), answer)
        )
        assert isinstance(result, OpenObject | HayloftError)
        return result

    def close(self) -> None:
        self.origin.gate.set()
        self.read_through_cache.close()
        self.chunks.close()


def waited(ask: Callable[[Callable[[object], None]], object]) -> object:
    """The answer of a call, copied, because the views are valid only during the answer."""
    done, answers = threading.Event(), []

    def answer(value: object) -> None:
        answers.append(b"".join(value) if isinstance(value, list) else value)
        done.set()

    ask(answer)
    assert done.wait(20), "no answer"
    return answers[0]


def read(opened: OpenObject, start: int, count_bytes: int) -> bytes:
    result = waited(lambda answer: opened.read(start, count_bytes, answer))
    if isinstance(result, HayloftError):
        raise result
    assert isinstance(result, bytes)
    return result


def read_whole(opened: OpenObject, size_bytes: int, step: int = CHUNK_BYTES) -> bytes:
    return b"".join(read(opened, start, step) for start in range(0, size_bytes, step))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ReadBench]:
    bench = ReadBench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.promise("S20")
def test_a_small_object_is_complete_after_its_open_with_one_request(bench: ReadBench) -> None:
    opened = bench.open("small")
    assert opened.backing_descriptor is not None
    assert read_whole(opened, len(SMALL)) == SMALL
    assert bench.origin.requests == [("small", ByteRange(0, len(SMALL)))]
    opened.close()


@pytest.mark.promise("S21")
def test_a_read_without_an_open_is_answered_before_the_small_object_is_on_the_disk(bench: ReadBench) -> None:
    source = ObjectSource(bench.origin.version("small"), bench.origin)
    on_the_disk: list[bool] = []
    got: list[bytes] = []

    def read_at_once(opened: OpenObject | HayloftError) -> None:
        assert isinstance(opened, OpenObject)
        assert opened.in_memory
        on_the_disk.append(bench.chunks.is_complete(source.version))
        opened.read(100, 5000, lambda data: got.append(b"".join(data) if isinstance(data, list) else b""))
        opened.close()

    bench.read_through_cache.open_to_read(source, read_at_once)
    with_file = bench.open("small")  # waits for the same fetch, and gets a file
    assert on_the_disk == [False]
    assert got == [SMALL[100:5100]]
    assert with_file.backing_descriptor is not None
    with_file.close()
    assert len(bench.origin.requests) == 1


def test_a_read_without_an_open_gets_the_error_of_the_store(bench: ReadBench) -> None:
    bench.origin.failures.append(AccessDenied("no"))
    source = ObjectSource(bench.origin.version("small"), bench.origin)
    assert isinstance(waited(lambda answer: bench.read_through_cache.open_to_read(source, answer)), AccessDenied)


def test_an_empty_object_is_open_at_once_without_a_request(bench: ReadBench) -> None:
    opened = bench.open("empty")
    assert read(opened, 0, 4096) == b""
    opened.close()
    assert bench.origin.requests == []


@pytest.mark.parametrize("step", [CHUNK_BYTES, 128 * 1024, 999_999, 3 * CHUNK_BYTES + 1])
def test_a_large_object_has_the_right_bytes_and_each_is_fetched_once(bench: ReadBench, step: int) -> None:
    opened = bench.open("large")
    assert opened.backing_descriptor is None
    assert read_whole(opened, len(LARGE), step) == LARGE
    assert bench.origin.bytes_sent == len(LARGE)
    opened.close()
    wait_until(lambda: is_passed_through(bench, "large"))  # the last chunks may still be written


def is_passed_through(bench: ReadBench, name: str) -> bool:
    opened = bench.open(name)
    found = opened.backing_descriptor is not None
    opened.close()
    return found


@pytest.mark.promise("S14")
def test_a_read_at_and_beyond_the_end_is_short_or_empty(bench: ReadBench) -> None:
    opened = bench.open("large")
    assert read(opened, len(LARGE) - 10, 4096) == LARGE[-10:]
    assert read(opened, len(LARGE), 4096) == b""
    assert read(opened, len(LARGE) + 10**9, 4096) == b""
    opened.close()


@pytest.mark.promise("S19")
def test_random_reads_fetch_only_the_chunks_they_touch(bench: ReadBench) -> None:
    opened = bench.open("large")
    for chunk in (11, 3, 17):
        start = chunk * CHUNK_BYTES + 5000
        assert read(opened, start, 8192) == LARGE[start : start + 8192]
    assert bench.origin.bytes_sent == 3 * CHUNK_BYTES
    opened.close()


@pytest.mark.promise("S18")
def test_many_readers_of_one_cold_object_cause_one_fetch_of_each_byte(bench: ReadBench) -> None:
    wrong: list[int] = []

    def reader(number: int) -> None:
        opened = bench.open("large")
        if read_whole(opened, len(LARGE), 256 * 1024) != LARGE:
            wrong.append(number)
        opened.close()

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert bench.origin.bytes_sent == len(LARGE)


def test_a_read_is_answered_before_its_long_fetch_is_done(bench: ReadBench) -> None:
    opened = bench.open("large")
    assert read(opened, 0, CHUNK_BYTES) == LARGE[:CHUNK_BYTES]
    opened.close()


def test_many_opens_of_one_small_cold_object_cause_one_request(bench: ReadBench) -> None:
    bench.origin.gate.clear()
    source = ObjectSource(bench.origin.version("small"), bench.origin)
    answers: list[object] = []
    done = threading.Semaphore(0)

    def opened(result: object) -> None:
        answers.append(result)
        done.release()

    for _ in range(10):
        bench.read_through_cache.open(source, opened)
    bench.origin.gate.set()
    for _ in range(10):
        assert done.acquire(timeout=20)
    assert len(bench.origin.requests) == 1
    for each in answers:
        assert isinstance(each, OpenObject)
        assert read_whole(each, len(SMALL)) == SMALL
        each.close()


def test_a_cancelled_read_is_answered_at_once_and_the_others_continue(bench: ReadBench) -> None:
    opened = bench.open("large")
    bench.origin.gate.clear()
    answers: list[object] = []
    done = threading.Semaphore(0)

    def answer(value: object) -> None:
        answers.append(b"".join(value) if isinstance(value, list) else value)
        done.release()

    token = opened.read(0, 4096, answer)
    opened.read(0, 4096, answer)
    assert token is not None
    ObjectReader.cancel(token)
    assert done.acquire(timeout=5)
    assert isinstance(answers[0], Interrupted)
    bench.origin.gate.set()
    assert done.acquire(timeout=20)
    assert answers[1] == LARGE[:4096]
    opened.close()


@pytest.mark.parametrize("key", ["small", "large"])
def test_an_error_of_the_store_reaches_the_reader_and_a_retry_works(bench: ReadBench, key: str) -> None:
    bench.origin.failures = [AccessDenied("no")] * 20  # the readahead may ask before the read does
    with pytest.raises(AccessDenied):
        read(bench.open(key), 0, 4096)
    bench.origin.failures = []
    assert read(bench.open(key), 0, 4096) == bench.origin.objects[key][:4096]


@pytest.mark.promise("S26")
def test_an_object_that_changed_is_stale_where_it_is_not_cached_and_never_mixed(bench: ReadBench) -> None:
    opened = bench.open("large")
    first = read(opened, 10 * CHUNK_BYTES, 8192)
    bench.origin.objects["large"] = bytes(len(LARGE))
    with pytest.raises(ObjectChanged):
        read(opened, 2 * CHUNK_BYTES, 8192)
    assert read(opened, 10 * CHUNK_BYTES, 8192) == first == LARGE[10 * CHUNK_BYTES : 10 * CHUNK_BYTES + 8192]
    opened.close()


def test_a_fetch_that_no_reader_needs_any_more_is_not_begun(tmp_path: Path) -> None:
    bench = ReadBench(tmp_path, fetch_threads=2)
    opened = bench.open("large")
    bench.origin.gate.clear()
    token = opened.read(0, CHUNK_BYTES, lambda value: None)
    opened.close()
    if token is not None:
        ObjectReader.cancel(token)
    bench.origin.gate.set()
    bench.close()
    assert bench.origin.bytes_sent < len(LARGE) // 2


@pytest.mark.promise("S30")
def test_a_cache_that_is_too_small_for_the_object_still_serves_it(tmp_path: Path) -> None:
    bench = ReadBench(tmp_path, limit_bytes=3 * CHUNK_BYTES)
    opened = bench.open("large")
    assert read_whole(opened, len(LARGE), 512 * 1024) == LARGE
    opened.close()
    assert bench.chunks.used_bytes <= 3 * CHUNK_BYTES
    bench.close()


def test_readers_and_files_are_closed_when_no_open_is_left(bench: ReadBench) -> None:
    for _ in range(20):
        opened = bench.open("large")
        read(opened, 0, 4096)
        opened.close()
    deadline = time.monotonic() + 20
    while not bench.read_through_cache.table.is_empty and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.read_through_cache.table.is_empty
    assert not bench.chunks._in_use.digests


class WatchedDisk(LocalDisk):
    """Calls ``on_open`` before a file is opened. No read is answered from the page cache; each waits for ``gate``."""

    def __init__(self) -> None:
        self.on_open: Callable[[str], None] = lambda path: None
        self.gate = threading.Event()
        self.reading = 0
        self._lock = threading.Lock()

    def open(self, label: str, path: Path | str) -> int | None:
        self.on_open(str(path))
        return super().open(label, path)

    def read_cached(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return 0

    def read(self, label: str, descriptor: int, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        with self._lock:
            self.reading += 1
        assert self.gate.wait(20)
        return super().read(label, descriptor, buffers, offset)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[ReadBench]:
    disk = WatchedDisk()
    bench = ReadBench(tmp_path, disk=disk, fetch_threads=2)
    for number in range(8):
        bench.origin.objects[f"other-{number}"] = SMALL[number:]
    yield bench
    disk.gate.set()
    bench.close()


def test_an_object_that_arrives_meanwhile_sends_no_open_of_another_back_to_the_disk(watched: ReadBench) -> None:
    disk, looks = watched.disk, list[str]()
    digest = watched.origin.version("small").digest(CHUNK_BYTES)

    def on_open(path: str) -> None:
        if path.endswith(digest) and len(looks) < 8:
            looks.append(path)
            watched.open(f"other-{len(looks) - 1}").close()

    disk.on_open = on_open
    watched.open("small").close()
    assert len(looks) == 1


def test_an_object_that_arrives_while_its_open_looks_for_it_is_not_fetched_again(watched: ReadBench) -> None:
    """Also if many others arrive with it."""
    disk, looks = watched.disk, list[str]()
    digest = watched.origin.version("small").digest(CHUNK_BYTES)

    def on_open(path: str) -> None:
        if path.endswith(digest):
            disk.on_open = lambda path: None
            looks.append(path)

    def late_find(version: ObjectVersion, dataset: int = 0) -> ObjectFile | None:
        """The look-up finds nothing, and then the object arrives."""
        watched.chunks.find = found  # type: ignore[method-assign]
        watched.open("small").close()
        for number in range(8):
            watched.open(f"other-{number}").close()
        return None

    found = watched.chunks.find
    watched.chunks.find = late_find  # type: ignore[method-assign]
    watched.open("small").close()
    assert [key for key, _ in watched.origin.requests].count("small") == 1


@pytest.mark.parametrize("key", ["small", "large"])
def test_a_file_that_was_read_from_the_disk_can_be_evicted_as_soon_as_it_is_closed(
    watched: ReadBench, key: str
) -> None:
    watched.disk.gate.set()
    opened = watched.open(key)

    def reads_from_disk() -> bool:  # not the first reads of the large one: of the store, and of memory
        assert read(opened, 0, 4096) == watched.origin.objects[key][:4096]
        return watched.disk.reading >= 3

    wait_until(reads_from_disk)
    opened.close()

    def is_evicted() -> bool:
        gone, _ = watched.chunks.evict([watched.origin.version(key)])
        return gone.files == 1

    wait_until(is_evicted)


def test_a_read_that_the_disk_fails_leaves_no_use_of_its_file(
    watched: ReadBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = watched.open("small")
    file = opened.file
    assert file is not None

    def fail(*_: object) -> int:
        raise CacheDiskFailed("chunk.read: EIO")

    monkeypatch.setattr(watched.disk, "read", fail)
    assert read(opened, 0, 4096) == SMALL[:4096], "from the store"
    opened.close()
    wait_until(lambda: not file._users)


@pytest.mark.promise("S433")
def test_reads_from_the_disk_are_as_many_at_a_time_as_a_disk_takes_and_not_as_there_are_fetch_threads(
    watched: ReadBench,
) -> None:
    opened = watched.open("small")
    done = threading.Semaphore(0)
    for number in range(40):
        opened.read(number * 1000, 1000, lambda data: done.release())
    wait_until(lambda: watched.disk.reading == DISK_READS - DISK_READS // OTHERS_SHARE)
    watched.disk.gate.set()
    for _ in range(40):
        assert done.acquire(timeout=20)
    opened.close()
