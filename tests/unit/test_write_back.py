"""A cache disk that is slower than the store: readers do not wait for it, and memory stays bounded."""

from __future__ import annotations

import logging
import random
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
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.write_back import WriteBack
from csi_driver.settings import MIB, ChunkStoreSettings, ReadingSettings
from tests.support.scripted_store import ScriptedStore

LARGE = random.Random(1).randbytes(40 * CHUNK_BYTES + 12345)
SMALL = random.Random(2).randbytes(110_000)
WAIT_S = 20


class StuckDisk(LocalDisk):
    """Its writes do not end while ``gate`` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.stuck = 0

    def write(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> None:
        self.stuck += 1
        assert self.gate.wait(WAIT_S)
        self.stuck -= 1
        super().write(label, descriptor, buffers, offset)


class Bench:
    def __init__(self, directory: Path, **reading: int) -> None:
        small = {f"small-{number}": SMALL[number:] for number in range(40)}
        self.origin = ScriptedStore({"large": LARGE, **small})
        self.disk = StuckDisk()
        settings = ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, self.disk)
        self.library = ReadThroughCache(self.chunks, ReadingSettings(**{"fetch_threads": 8, **reading}))

    def source(self, key: str) -> ObjectSource:
        return ObjectSource(self.origin.version(key), self.origin)

    def open(self, key: str) -> OpenObject:
        result = waited(lambda answer: self.library.open(self.source(key), answer))
        assert isinstance(result, OpenObject), result
        return result

    def close(self) -> None:
        self.disk.gate.set()
        self.library.close()
        self.chunks.close()


def waited(ask: Callable[[Callable[[object], None]], object]) -> object:
    done, answers = threading.Event(), []

    def answer(value: object) -> None:
        answers.append(b"".join(value) if isinstance(value, list) else value)
        done.set()

    ask(answer)
    assert done.wait(WAIT_S), "nobody answered"
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


def test_a_reader_does_not_wait_for_a_disk_that_is_stuck_and_bytes_come_once(bench: Bench) -> None:
    opened = bench.open("large")
    bench.disk.gate.clear()
    assert read_whole(opened, LARGE) == LARGE
    assert read_whole(opened, LARGE) == LARGE, "from memory"
    assert bench.origin.bytes_sent == len(LARGE)
    bench.disk.gate.set()
    assert eventually(lambda: bench.chunks.is_complete(bench.origin.version("large")))
    assert bench.library.writes.waiting_bytes == 0
    assert bench.library.writes.passed_bytes == 0
    assert read_whole(opened, LARGE) == LARGE
    assert bench.origin.bytes_sent == len(LARGE)
    opened.close()


def test_beyond_the_queue_bytes_are_served_and_not_cached_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, write_queue_bytes=4 * MIB)
    opened = bench.open("large")
    bench.disk.gate.clear()
    with caplog.at_level(logging.WARNING):
        assert read_whole(opened, LARGE) == LARGE
    assert bench.library.writes.waiting_bytes <= 4 * MIB
    assert bench.library.writes.passed_bytes >= 20 * MIB
    assert len([record for record in caplog.records if "slower than the store" in record.message]) == 1
    bench.disk.gate.set()
    assert eventually(lambda: bench.library.writes.waiting_bytes == 0)
    assert read_whole(opened, LARGE) == LARGE
    opened.close()
    bench.close()


def test_small_files_are_opened_and_read_though_the_disk_is_stuck(bench: Bench) -> None:
    bench.disk.gate.clear()
    answers: dict[str, OpenObject] = {}
    done = threading.Semaphore(0)
    keys = [f"small-{number}" for number in range(40)]
    for key in keys:

        def opened(result: object, key: str = key) -> None:
            assert isinstance(result, OpenObject)
            answers[key] = result
            done.release()

        bench.library.open(bench.source(key), opened)
    for _ in range(40 - 6):
        assert done.acquire(timeout=WAIT_S), "only those wait whose own write is stuck: three quarters of the threads"
    for key, one in list(answers.items()):
        assert read(one, 0, MIB) == bench.origin.objects[key]
    again = bench.open(next(iter(answers)))
    assert len(bench.origin.requests) == 40, "what waits to be written is not fetched again"
    again.close()
    bench.disk.gate.set()
    for _ in range(6):
        assert done.acquire(timeout=WAIT_S)
    for one in answers.values():
        one.close()
    assert eventually(lambda: all(bench.chunks.is_complete(bench.origin.version(key)) for key in keys))
    assert eventually(lambda: bench.library.writes.waiting_bytes == 0)


def test_with_a_disk_that_keeps_up_a_small_file_is_complete_when_it_is_open(bench: Bench) -> None:
    opened = bench.open("small-1")
    assert opened.backing_descriptor is not None
    opened.close()


def test_what_waits_is_written_before_an_orderly_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    opened = bench.open("large")
    bench.disk.gate.clear()
    read_whole(opened, LARGE)
    opened.close()
    threading.Timer(0.2, bench.disk.gate.set).start()
    bench.library.close()
    assert bench.chunks.present_bytes(bench.origin.version("large")) == len(LARGE)
    bench.chunks.close()


def test_a_write_that_fails_in_a_way_nobody_foresaw_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    queue = WriteBack(100, 1)
    ticket = queue.enter()
    assert ticket is not None
    done: list[bool] = []

    def fail() -> None:
        raise RuntimeError("no")

    queue.submit(10, fail, done.append)
    queue.submit(10, lambda: None, done.append)
    assert eventually(lambda: done == [True, True])
    queue.leave(ticket)
    queue.close()
    assert "nobody foresaw" in caplog.text


def test_held_bytes_count_as_waiting() -> None:
    queue = WriteBack(100, 1)
    assert queue.hold(60)
    assert not queue.hold(60)
    queue.let_go(60)
    assert queue.hold(100)
    queue.close()
