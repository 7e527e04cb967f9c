"""Reads of one object: the right bytes, each chunk fetched once, every read answered."""

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
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.own_event_loop import OwnLoopCache
from tests.support.scripted_store import ScriptedStore

LARGE = random.Random(1).randbytes(20 * CHUNK_BYTES + 12345)
SMALL = random.Random(2).randbytes(110_000)


class ReadBench:
    """A read-through cache over a scripted store."""

    def __init__(self, directory: Path, limit_bytes: int = 1 << 30, **reading: int) -> None:
        self.origin = ScriptedStore({"large": LARGE, "small": SMALL, "empty": b""})
        self.chunks = ChunkStore(ChunkStoreSettings(directory=directory, limit_bytes=limit_bytes, free_floor_bytes=0))
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
    again = bench.open("large")
    assert again.backing_descriptor is not None
    again.close()


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
    bench.origin.failures = [AccessDenied("no")]
    with pytest.raises(AccessDenied):
        read(bench.open(key), 0, 4096)
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
    while bench.read_through_cache._readers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.read_through_cache._readers == {}
    assert not bench.chunks._in_use.digests
