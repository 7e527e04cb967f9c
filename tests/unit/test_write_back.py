"""A cache disk that is slower than the store: readers do not wait for it, and memory stays bounded."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import LocalDisk
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.errors import HayloftError
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.write_back import WriteBack
from csi_driver.settings import MIB, ChunkStoreSettings, ReadingSettings
from tests.support.own_event_loop import OwnLoopCache
from tests.support.random_bytes import random_bytes
from tests.support.scripted_store import ScriptedStore

LARGE = random_bytes(1, 40 * CHUNK_BYTES + 12345)
SMALL = random_bytes(2, 110_000)
WAIT_S = 20


class StuckDisk(LocalDisk):
    """Writes block while ``gate`` is cleared."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.stuck = 0

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        self.stuck += 1
        assert self.gate.wait(WAIT_S)
        self.stuck -= 1
        super().write(label, descriptor, buffers, offset, cached=cached)


class FailingDisk(StuckDisk):
    """Its first write fails in a way that no disk does, when it is stuck no more."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        fails = next(self.numbers) == 0
        super().write(label, descriptor, buffers, offset, cached=cached)
        if fails:
            raise MemoryError


class Bench:
    def __init__(self, directory: Path, disk: StuckDisk | None = None, **reading: int) -> None:
        small = {f"small-{number}": SMALL[number:] for number in range(40)}
        self.origin = ScriptedStore({"large": LARGE, **small})
        self.disk = disk or StuckDisk()
        settings = ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, self.disk)
        self.read_through_cache = OwnLoopCache(self.chunks, ReadingSettings(**{"fetch_threads": 8, **reading}))

    def source(self, key: str) -> ObjectSource:
        return ObjectSource(self.origin.version(key), self.origin)

    def open(self, key: str) -> OpenObject:
        result = waited(lambda answer: self.read_through_cache.open(self.source(key), answer))
        assert isinstance(result, OpenObject), result
        return result

    def close(self) -> None:
        self.disk.gate.set()
        self.read_through_cache.close()
        self.chunks.close()


def waited(ask: Callable[[Callable[[object], None]], object]) -> object:
    done, answers = threading.Event(), []

    def answer(value: object) -> None:
        answers.append(b"".join(value) if isinstance(value, list) else value)
        done.set()

    ask(answer)
    assert done.wait(WAIT_S), "no answer"
    return answers[0]


def read(opened: OpenObject, start: int, count_bytes: int) -> bytes:
    result = waited(lambda answer: opened.read(start, count_bytes, answer))
    if isinstance(result, HayloftError):
        raise result
    assert isinstance(result, bytes)
    return result


def read_whole(opened: OpenObject, data: bytes) -> bytes:
    return b"".join(read(opened, start, CHUNK_BYTES) for start in range(0, len(data), CHUNK_BYTES))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.promise("S51")
def test_a_reader_does_not_wait_for_a_stuck_disk_and_each_byte_is_fetched_once(bench: Bench) -> None:
    opened = bench.open("large")
    bench.disk.gate.clear()
    assert read_whole(opened, LARGE) == LARGE
    assert read_whole(opened, LARGE) == LARGE, "from memory"
    assert bench.origin.bytes_sent == len(LARGE)
    bench.disk.gate.set()
    assert eventually(lambda: bench.chunks.is_complete(bench.origin.version("large")))
    assert eventually(lambda: bench.read_through_cache.write_back.pending_bytes == 0)
    assert read_whole(opened, LARGE) == LARGE
    assert bench.origin.bytes_sent == len(LARGE)
    opened.close()


@pytest.mark.promise("S51")
def test_bytes_beyond_the_write_queue_are_served_and_not_cached_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, write_queue_bytes=4 * MIB)
    opened = bench.open("large")
    bench.disk.gate.clear()
    with caplog.at_level(logging.WARNING):
        assert read_whole(opened, LARGE) == LARGE
    assert bench.read_through_cache.write_back.pending_bytes <= 4 * MIB
    assert len([record for record in caplog.records if "slower than the store" in record.message]) == 1
    bench.disk.gate.set()
    assert eventually(lambda: bench.read_through_cache.write_back.pending_bytes == 0)
    assert bench.chunks.present_bytes(bench.origin.version("large")) <= len(LARGE) - 20 * MIB
    assert read_whole(opened, LARGE) == LARGE
    opened.close()
    bench.close()


def test_small_files_are_opened_and_read_while_the_disk_is_stuck(bench: Bench) -> None:
    bench.disk.gate.clear()
    answers: dict[str, OpenObject] = {}
    done = threading.Semaphore(0)
    keys = [f"small-{number}" for number in range(40)]
    for key in keys:

        def opened(result: object, key: str = key) -> None:
            assert isinstance(result, OpenObject)
            answers[key] = result
            done.release()

        bench.read_through_cache.open(bench.source(key), opened)
    for _ in range(40 - 6):
        assert done.acquire(timeout=WAIT_S), (
            "only opens whose own write is stuck are pending: three quarters of the fetch threads"
        )
    for key, one in list(answers.items()):
        assert read(one, 0, MIB) == bench.origin.objects[key]
    again = bench.open(next(iter(answers)))
    assert len(bench.origin.requests) == 40, "an object whose write is queued is not fetched again"
    again.close()
    bench.disk.gate.set()
    for _ in range(6):
        assert done.acquire(timeout=WAIT_S)
    for one in answers.values():
        one.close()
    assert eventually(lambda: all(bench.chunks.is_complete(bench.origin.version(key)) for key in keys))
    assert eventually(lambda: bench.read_through_cache.write_back.pending_bytes == 0)


def test_a_small_file_is_complete_when_it_is_open_unless_the_disk_is_backlogged(bench: Bench) -> None:
    opened = bench.open("small-1")
    assert opened.backing_descriptor is not None
    opened.close()


def test_queued_writes_are_done_before_an_orderly_close(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    opened = bench.open("large")
    bench.disk.gate.clear()
    read_whole(opened, LARGE)
    opened.close()
    threading.Timer(0.2, bench.disk.gate.set).start()
    bench.read_through_cache.close()
    assert bench.chunks.present_bytes(bench.origin.version("large")) == len(LARGE)
    bench.chunks.close()


def test_an_unexpected_error_in_a_write_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    write_back = WriteBack(100, 1)
    ticket = write_back.begin_write()
    assert ticket is not None
    done: list[bool] = []

    def fail() -> None:
        raise RuntimeError("no")

    write_back.submit(10, fail, done.append)
    write_back.submit(10, lambda: None, done.append)
    assert eventually(lambda: done == [True, True])
    write_back.end_write(ticket)
    write_back.close()
    assert "RuntimeError: no" in caplog.text


def test_an_unexpected_error_in_a_write_that_took_long_leaves_no_file_open_and_ends_no_fetch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the fetch is another thread's by then, which has the fetch's use of the file."""
    bench = Bench(tmp_path, FailingDisk())
    opened = bench.open("large")
    bench.disk.gate.clear()
    assert read_whole(opened, LARGE) == LARGE, "the reads behind the stuck write are of the thread that took over"
    bench.disk.gate.set()
    assert eventually(lambda: "MemoryError" in caplog.text)
    assert eventually(lambda: bench.read_through_cache.write_back.pending_bytes == 0)
    assert read_whole(opened, LARGE) == LARGE, "the chunk is fetched again"
    opened.close()
    assert eventually(lambda: bench.read_through_cache.table.is_empty)
    assert not bench.chunks._in_use.digests
    bench.close()


def test_reserved_bytes_count_as_pending() -> None:
    write_back = WriteBack(100, 1)
    assert write_back.reserve(60)
    assert not write_back.reserve(60)
    write_back.release(60)
    assert write_back.reserve(100)
    write_back.close()


@pytest.mark.promise("S432")
def test_a_warmup_does_not_fetch_an_object_again_that_waits_in_the_write_queue(bench: Bench) -> None:
    bench.disk.gate.clear()
    opens = [threading.Event() for _ in range(40)]
    for number, done in enumerate(opens):
        bench.read_through_cache.open_to_read(bench.source(f"small-{number}"), lambda result, done=done: done.set())  # type: ignore[misc]
    for done in opens:
        assert done.wait(WAIT_S)
    assert eventually(lambda: bench.read_through_cache.write_back.pending_bytes > 0)
    for number in range(40):
        source = bench.source(f"small-{number}")
        if bench.read_through_cache.table.look(source.key)[1]:
            opened = waited(lambda answer, source=source: bench.read_through_cache.warm(source, answer, 1, None))  # type: ignore[misc]
            assert isinstance(opened, OpenObject)
            assert opened.complete
            opened.close()
    assert len(bench.origin.requests) == 40
    bench.disk.gate.set()
    assert eventually(lambda: bench.read_through_cache.write_back.pending_bytes == 0)
