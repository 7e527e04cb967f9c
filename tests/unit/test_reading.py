"""Reading: each byte right, each chunk fetched once, nobody left waiting."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import AccessDenied, HayloftError, Interrupted, ObjectChanged
from csi_driver.reading.object_reader import ObjectReader
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.scripted_store import ScriptedStore

LARGE = random.Random(1).randbytes(20 * CHUNK_BYTES + 12345)
SMALL = random.Random(2).randbytes(110_000)


class ObjectFiles:
    """A library over a scripted store."""

    def __init__(self, directory: Path, limit_bytes: int = 1 << 30, **reading: int) -> None:
        self.origin = ScriptedStore({"large": LARGE, "small": SMALL, "empty": b""})
        self.chunks = ChunkStore(ChunkStoreSettings(directory=directory, limit_bytes=limit_bytes, free_floor_bytes=0))
        self.library = ReadThroughCache(self.chunks, ReadingSettings(**reading))

    def open(self, key: str) -> OpenObject:
        result = self.try_open(key)
        if isinstance(result, HayloftError):
            raise result
        return result

    def try_open(self, key: str) -> OpenObject | HayloftError:
        return waited(lambda answer: self.library.open(ObjectSource(self.origin.version(key), self.origin), answer))

    def close(self) -> None:
        self.origin.gate.set()
        self.library.close()
        self.chunks.close()


def waited(ask: Callable[[Callable[[object], None]], object]) -> object:
    """What a call answers, copied, for the views are valid only during the answer."""
    done, answers = threading.Event(), []

    def answer(value: object) -> None:
        answers.append(b"".join(value) if isinstance(value, list) else value)
        done.set()

    ask(answer)
    assert done.wait(20), "nobody answered"
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
def shelf(tmp_path: Path) -> Iterator[ObjectFiles]:
    shelf = ObjectFiles(tmp_path)
    yield shelf
    shelf.close()


def test_a_small_object_is_complete_after_its_open_with_one_request(shelf: ObjectFiles) -> None:
    opened = shelf.open("small")
    assert opened.backing_descriptor is not None
    assert read_whole(opened, len(SMALL)) == SMALL
    assert shelf.origin.requests == [("small", ByteRange(0, len(SMALL)))]
    opened.close()


def test_who_reads_a_small_object_without_opening_it_has_its_bytes_before_the_disk_has_them(shelf: ObjectFiles) -> None:
    source = ObjectSource(shelf.origin.version("small"), shelf.origin)
    on_the_disk: list[bool] = []
    got: list[bytes] = []

    def read_at_once(opened: OpenObject | HayloftError) -> None:
        assert isinstance(opened, OpenObject)
        assert opened.in_memory
        on_the_disk.append(shelf.chunks.is_complete(source.version))
        opened.read(100, 5000, lambda data: got.append(b"".join(data) if isinstance(data, list) else b""))
        opened.close()

    shelf.library.open_to_read(source, read_at_once)
    with_file = shelf.open("small")  # waits for the same fetch, and gets a file
    assert on_the_disk == [False]
    assert got == [SMALL[100:5100]]
    assert with_file.backing_descriptor is not None
    with_file.close()
    assert len(shelf.origin.requests) == 1


def test_who_reads_a_small_object_that_cannot_be_had_is_told_why(shelf: ObjectFiles) -> None:
    shelf.origin.failures.append(AccessDenied("no"))
    source = ObjectSource(shelf.origin.version("small"), shelf.origin)
    assert isinstance(waited(lambda answer: shelf.library.open_to_read(source, answer)), AccessDenied)


def test_an_empty_object_is_open_at_once_and_asks_for_nothing(shelf: ObjectFiles) -> None:
    opened = shelf.open("empty")
    assert read(opened, 0, 4096) == b""
    opened.close()
    assert shelf.origin.requests == []


@pytest.mark.parametrize("step", [CHUNK_BYTES, 128 * 1024, 999_999, 3 * CHUNK_BYTES + 1])
def test_a_large_object_reads_right_and_every_byte_comes_once(shelf: ObjectFiles, step: int) -> None:
    opened = shelf.open("large")
    assert opened.backing_descriptor is None
    assert read_whole(opened, len(LARGE), step) == LARGE
    assert shelf.origin.bytes_sent == len(LARGE)
    opened.close()
    again = shelf.open("large")
    assert again.backing_descriptor is not None
    again.close()


def test_a_read_at_and_beyond_the_end_is_short_or_empty(shelf: ObjectFiles) -> None:
    opened = shelf.open("large")
    assert read(opened, len(LARGE) - 10, 4096) == LARGE[-10:]
    assert read(opened, len(LARGE), 4096) == b""
    assert read(opened, len(LARGE) + 10**9, 4096) == b""
    opened.close()


def test_random_reads_fetch_only_the_chunks_they_touch(shelf: ObjectFiles) -> None:
    opened = shelf.open("large")
    for chunk in (11, 3, 17):
        start = chunk * CHUNK_BYTES + 5000
        assert read(opened, start, 8192) == LARGE[start : start + 8192]
    assert shelf.origin.bytes_sent == 3 * CHUNK_BYTES
    opened.close()


def test_many_readers_of_one_cold_object_cause_one_fetch_of_each_byte(shelf: ObjectFiles) -> None:
    wrong: list[int] = []

    def reader(number: int) -> None:
        opened = shelf.open("large")
        if read_whole(opened, len(LARGE), 256 * 1024) != LARGE:
            wrong.append(number)
        opened.close()

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert shelf.origin.bytes_sent == len(LARGE)


def test_a_read_is_answered_before_its_long_fetch_is_done(shelf: ObjectFiles) -> None:
    opened = shelf.open("large")
    assert read(opened, 0, CHUNK_BYTES) == LARGE[:CHUNK_BYTES]
    opened.close()


def test_many_opens_of_one_small_cold_object_cause_one_request(shelf: ObjectFiles) -> None:
    shelf.origin.gate.clear()
    source = ObjectSource(shelf.origin.version("small"), shelf.origin)
    answers: list[object] = []
    done = threading.Semaphore(0)

    def opened(result: object) -> None:
        answers.append(result)
        done.release()

    for _ in range(10):
        shelf.library.open(source, opened)
    shelf.origin.gate.set()
    for _ in range(10):
        assert done.acquire(timeout=20)
    assert len(shelf.origin.requests) == 1
    for each in answers:
        assert isinstance(each, OpenObject)
        assert read_whole(each, len(SMALL)) == SMALL
        each.close()


def test_a_cancelled_read_is_answered_at_once_and_the_others_go_on(shelf: ObjectFiles) -> None:
    opened = shelf.open("large")
    shelf.origin.gate.clear()
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
    shelf.origin.gate.set()
    assert done.acquire(timeout=20)
    assert answers[1] == LARGE[:4096]
    opened.close()


@pytest.mark.parametrize("key", ["small", "large"])
def test_an_error_of_the_store_reaches_the_reader_and_the_next_try_works(shelf: ObjectFiles, key: str) -> None:
    shelf.origin.failures = [AccessDenied("no")]
    with pytest.raises(AccessDenied):
        read(shelf.open(key), 0, 4096)
    assert read(shelf.open(key), 0, 4096) == shelf.origin.objects[key][:4096]


def test_an_object_that_changed_is_stale_where_it_is_not_cached_and_never_mixed(shelf: ObjectFiles) -> None:
    opened = shelf.open("large")
    first = read(opened, 10 * CHUNK_BYTES, 8192)
    shelf.origin.objects["large"] = bytes(len(LARGE))
    with pytest.raises(ObjectChanged):
        read(opened, 2 * CHUNK_BYTES, 8192)
    assert read(opened, 10 * CHUNK_BYTES, 8192) == first == LARGE[10 * CHUNK_BYTES : 10 * CHUNK_BYTES + 8192]
    opened.close()


def test_a_fetch_that_nobody_wants_any_more_is_not_begun(tmp_path: Path) -> None:
    shelf = ObjectFiles(tmp_path, fetch_threads=2)
    opened = shelf.open("large")
    shelf.origin.gate.clear()
    token = opened.read(0, CHUNK_BYTES, lambda value: None)
    opened.close()
    if token is not None:
        ObjectReader.cancel(token)
    shelf.origin.gate.set()
    shelf.close()
    assert shelf.origin.bytes_sent < len(LARGE) // 2


def test_a_cache_that_is_too_small_for_the_object_still_serves_it(tmp_path: Path) -> None:
    shelf = ObjectFiles(tmp_path, limit_bytes=3 * CHUNK_BYTES)
    opened = shelf.open("large")
    assert read_whole(opened, len(LARGE), 512 * 1024) == LARGE
    opened.close()
    assert shelf.chunks.used_bytes <= 3 * CHUNK_BYTES
    shelf.close()


def test_readers_and_files_are_gone_when_nobody_reads(shelf: ObjectFiles) -> None:
    for _ in range(20):
        opened = shelf.open("large")
        read(opened, 0, 4096)
        opened.close()
    deadline = time.monotonic() + 20
    while shelf.library._readers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shelf.library._readers == {}
    assert not shelf.chunks._in_use.digests
