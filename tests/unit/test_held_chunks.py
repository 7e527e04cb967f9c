"""Files of weights that are fetched completely: their bytes are written past the page cache, and readers get them from
memory."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.direct_writes import DirectWrites
from csi_driver.cache.disk import LocalDisk, disk_error
from csi_driver.daemon.measurements import measurements
from csi_driver.daemon.volume_read_counts import VolumeReadCounts
from csi_driver.event_loop.once import Once
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange, chunk_count
from csi_driver.objects.checksums import CRC32C, Checksum, StoredChecksum
from csi_driver.reading.held_chunks import HeldBytes, HeldChunks
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import HELD_SHARE
from csi_driver.reading.readahead import Limits
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import MIB, ChunkStoreSettings, ReadingSettings
from tests.support.own_event_loop import OwnLoopCache
from tests.support.random_bytes import random_bytes
from tests.support.scripted_store import ScriptedStore
from tests.unit.test_write_back import eventually, read, waited

WEIGHTS = random_bytes(5, 24 * CHUNK_BYTES + 4321)
WHOLE = Limits(fetch_chunks=8, window_chunks=16, whole=True)


class WatchedDisk(LocalDisk):
    """Takes direct writes on every file system, counts them and the reads, and holds them up while ``gate`` is
    cleared."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.direct_bytes = self.read_bytes = 0
        self.error: int | None = None
        self.writing: dict[int, int] = {}
        self.closed_in_use = 0

    def open_direct(self, label: str, descriptor: int) -> int | None:
        return os.dup(descriptor)

    def write_direct(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.writing[descriptor] = threading.get_ident()
        try:
            assert self.gate.wait(20)
            if self.error is not None:
                raise disk_error(label, OSError(self.error, "made up"))
            written = os.pwritev(descriptor, buffers, offset)
        finally:
            self.writing.pop(descriptor, None)
        self.direct_bytes += written
        return written

    def close(self, descriptor: int) -> None:
        self.closed_in_use += descriptor in self.writing
        super().close(descriptor)

    def read(self, label: str, descriptor: int, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        count_bytes = super().read(label, descriptor, buffers, offset)
        self.read_bytes += count_bytes
        return count_bytes

    def read_cached(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return 0  # it was written past the page cache


class Bench:
    def __init__(self, directory: Path, disk: WatchedDisk | None = None, **reading: int) -> None:
        self.origin: ScriptedStore = ScriptedStore({"model.safetensors": WEIGHTS})
        self.version = self.origin.version("model.safetensors")
        self.disk = disk or WatchedDisk()
        settings = ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, self.disk)
        self.chunks._direct_writes = DirectWrites(self.disk, "ext4")
        self.cache = OwnLoopCache(self.chunks, ReadingSettings(**{"fetch_threads": 8, **reading}))

    def open(self, limits: Limits | None = WHOLE) -> OpenObject:
        source = ObjectSource(self.version, self.origin, limits=limits)
        result = waited(lambda answer: self.cache.open(source, answer))
        assert isinstance(result, OpenObject), result
        return result

    @property
    def held_bytes(self) -> int:
        return self.cache.held_bytes.count_bytes

    def is_complete(self) -> bool:
        return self.chunks.is_complete(self.version)

    def file(self) -> bytes:
        return Path(self.chunks._objects.complete_path(self.version.digest(CHUNK_BYTES))).read_bytes()

    def close(self) -> None:
        self.disk.gate.set()
        self.cache.close()
        self.chunks.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.promise("S706")
def test_a_reader_behind_the_fetches_needs_neither_the_page_cache_nor_the_disk(bench: Bench) -> None:
    opened = bench.open()
    assert read(opened, 0, CHUNK_BYTES) == WEIGHTS[:CHUNK_BYTES]
    assert eventually(bench.is_complete)
    whole_blocks = len(WEIGHTS) - len(WEIGHTS) % 4096
    assert bench.disk.direct_bytes == whole_blocks - CHUNK_BYTES, "all but the first read's chunk"
    assert bench.held_bytes == len(WEIGHTS) - CHUNK_BYTES
    rest = [read(opened, start, 300_000) for start in range(CHUNK_BYTES, len(WEIGHTS), 300_000)]
    assert b"".join(rest) == WEIGHTS[CHUNK_BYTES:]
    assert bench.disk.read_bytes == 0
    assert bench.held_bytes == 0, "each byte was read"
    opened.close()
    assert bench.file() == WEIGHTS
    assert bench.origin.bytes_sent == len(WEIGHTS)


@pytest.mark.promise("S706")
def test_what_does_not_fit_into_memory_goes_by_the_page_cache(tmp_path: Path) -> None:
    bench = Bench(tmp_path, write_queue_bytes=8 * MIB)
    opened = bench.open()
    read(opened, 0, 1)
    assert eventually(bench.is_complete)
    assert 5 * MIB <= bench.held_bytes <= 8 * MIB * HELD_SHARE
    assert bench.disk.direct_bytes == bench.held_bytes - bench.held_bytes % 4096
    # Of neighbouring chunks one is held and one is in the file.
    for start in range(0, len(WEIGHTS), 777_777):
        assert read(opened, start, 777_777) == WEIGHTS[start : start + 777_777]
    assert bench.held_bytes == 0
    assert 0 < bench.disk.read_bytes < len(WEIGHTS)
    opened.close()
    bench.close()


def test_bytes_that_are_read_in_any_order_and_again_are_right(tmp_path: Path) -> None:
    bench = Bench(tmp_path, write_queue_bytes=16 * MIB)
    opened, again = bench.open(), bench.open()
    chosen = random.Random(7)
    for _ in range(300):
        start = chosen.randrange(len(WEIGHTS))
        length = chosen.randrange(1, 2 * CHUNK_BYTES)
        reader = chosen.choice((opened, again))
        assert read(reader, start, length) == WEIGHTS[start : start + length]
        assert bench.held_bytes <= 12 * MIB
    opened.close()
    again.close()
    assert eventually(lambda: bench.held_bytes == 0)
    assert bench.disk.closed_in_use == 0
    bench.close()


def test_the_last_reader_that_leaves_gives_the_memory_back(bench: Bench) -> None:
    first, second = bench.open(), bench.open()
    read(first, 0, 1)
    assert eventually(bench.is_complete)
    assert bench.held_bytes
    first.close()
    assert bench.held_bytes, "the second may read it"
    second.close()
    assert eventually(lambda: bench.held_bytes == 0)


@pytest.mark.promise("S707")
def test_a_direct_write_that_is_stuck_holds_up_no_reader_and_shares_no_descriptor(bench: Bench) -> None:
    opened = bench.open()
    bench.disk.gate.clear()
    for start in range(0, len(WEIGHTS), CHUNK_BYTES):
        assert read(opened, start, CHUNK_BYTES) == WEIGHTS[start : start + CHUNK_BYTES]
    assert bench.disk.writing, "some are stuck"
    bench.disk.gate.set()
    assert eventually(bench.is_complete)
    assert bench.disk.closed_in_use == 0
    assert bench.file() == WEIGHTS
    opened.close()
    assert eventually(lambda: bench.held_bytes == 0)
    assert bench.origin.bytes_sent == len(WEIGHTS)


@pytest.mark.parametrize("number", [5, 28])
def test_a_direct_write_that_fails_costs_no_byte(bench: Bench, number: int) -> None:
    bench.disk.error = number
    opened = bench.open()
    for start in range(0, len(WEIGHTS), 500_000):
        assert read(opened, start, 500_000) == WEIGHTS[start : start + 500_000]
    opened.close()
    assert eventually(lambda: bench.held_bytes == 0)


@pytest.mark.parametrize("limits", [None, WHOLE._replace(whole=False)])
def test_files_that_are_not_fetched_completely_go_by_the_page_cache(bench: Bench, limits: Limits | None) -> None:
    opened = bench.open(limits)
    for start in range(0, len(WEIGHTS), CHUNK_BYTES):
        assert read(opened, start, CHUNK_BYTES) == WEIGHTS[start : start + CHUNK_BYTES]
    assert eventually(bench.is_complete)
    assert bench.disk.direct_bytes == 0
    assert bench.held_bytes == 0
    opened.close()


@pytest.mark.parametrize("file_system", ["tmpfs", "ext4"])
def test_nothing_is_held_where_direct_writes_are_slow_or_impossible(bench: Bench, file_system: str) -> None:
    bench.chunks._direct_writes = DirectWrites(bench.disk, file_system, clock=lambda: 0.0)
    bench.chunks._direct_writes._fast = False
    bench.chunks._direct_writes._retry_at = 1.0
    opened = bench.open()
    read(opened, 0, 1)
    assert eventually(bench.is_complete)
    assert bench.held_bytes == 0
    assert bench.disk.direct_bytes == 0
    opened.close()


# -- what is held is right, wanted, and not in the way --


class DamagedOnce(ScriptedStore):
    """Keeps a CRC32C of each object; the first response with the byte at ``AT`` has another one there."""

    AT = 10 * CHUNK_BYTES + 7
    md5_up_to_bytes = 0

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(objects)
        self._damage = Once()

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        value = crc32c.crc32c(self.objects[key]).to_bytes(4, "big")
        return StoredChecksum(Checksum(CRC32C, value), etag_may_be_md5=False)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        damaged = byte_range.start <= self.AT < byte_range.stop and self._damage.claim()
        at = self.AT - byte_range.start
        for piece in super().read_range(key, byte_range, if_match=if_match):
            if damaged and 0 <= at < len(piece):
                other = bytearray(piece)
                other[at] ^= 0xFF
                yield memoryview(other)
            else:
                yield piece
            at -= len(piece)


@pytest.mark.promise("S706")
def test_damaged_bytes_are_dropped_from_memory_with_those_of_the_file(bench: Bench) -> None:
    bench.origin = DamagedOnce({"model.safetensors": WEIGHTS})
    opened = bench.open()
    read(opened, 0, 1)
    assert eventually(lambda: bench.cache.integrity.counts.mismatches == 1)
    assert bench.held_bytes
    for start in range(0, len(WEIGHTS), CHUNK_BYTES):
        assert read(opened, start, CHUNK_BYTES) == WEIGHTS[start : start + CHUNK_BYTES]
    opened.close()


def test_a_warmup_that_waits_for_a_chunk_is_no_reader_of_it(bench: Bench) -> None:
    opened, warming = bench.open(), bench.open()
    bench.origin.gate.clear()
    opened.read(0, 1, lambda _: None)
    filler = threading.Thread(target=lambda: warming.fill(range(chunk_count(len(WEIGHTS)))))
    filler.start()
    assert opened._reader is not None
    pending = opened._reader._pending
    assert eventually(lambda: len(pending) == chunk_count(len(WEIGHTS)))
    bench.origin.gate.set()
    filler.join(20)
    assert eventually(bench.is_complete)
    for start in range(0, len(WEIGHTS), CHUNK_BYTES):
        assert read(opened, start, CHUNK_BYTES) == WEIGHTS[start : start + CHUNK_BYTES]
    assert bench.disk.read_bytes <= CHUNK_BYTES, "that of the first read"
    opened.close()
    warming.close()


@pytest.mark.promise("S706")
@pytest.mark.parametrize("hangs", ["store", "disk"])
def test_the_last_reader_gives_the_memory_back_while_store_or_disk_hangs(bench: Bench, hangs: str) -> None:
    opened = bench.open()
    if hangs == "disk":
        bench.disk.gate.clear()
    read(opened, 0, 1)
    assert eventually(lambda: bench.held_bytes >= 4 * MIB)
    if hangs == "store":
        bench.origin.gate.clear()
    opened.close()
    assert bench.held_bytes == 0
    bench.origin.gate.set()
    bench.disk.gate.set()
    assert eventually(lambda: not bench.cache.write_back._inline)
    assert bench.held_bytes == 0, "nothing is held for a reader that has left"


@pytest.mark.promise("S706")
def test_a_read_of_a_chunk_on_the_disk_and_one_in_memory_does_not_wait_on_the_thread_of_the_mount(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was read by another reader, and is held no more; the second is not yet written."""
    gate, readers = threading.Event(), list[threading.Thread]()
    read_disk, write_direct = bench.disk.read, bench.disk.write_direct

    def watched(label: str, descriptor: int, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        readers.append(threading.current_thread())
        return read_disk(label, descriptor, buffers, offset)

    def held_up(label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset == 5 * CHUNK_BYTES:
            assert gate.wait(20)
        return write_direct(label, descriptor, buffers, offset)

    monkeypatch.setattr(bench.disk, "read", watched)
    monkeypatch.setattr(bench.disk, "write_direct", held_up)
    opened, again = bench.open(), bench.open()
    read(opened, 0, 1)
    reader = opened._reader
    assert reader is not None
    file = reader.file
    assert file is not None
    assert eventually(lambda: file.is_present(4) and 5 in reader._unwritten)
    read(opened, 4 * CHUNK_BYTES, 2 * CHUNK_BYTES)
    readers.clear()
    answers: list[bytes] = []

    def answer(data: object) -> None:
        answers.append(b"".join(data) if isinstance(data, list) else b"")

    start = 4 * CHUNK_BYTES + 1000
    again.read(start, CHUNK_BYTES, answer)
    gate.set()
    assert eventually(lambda: bool(answers))
    assert answers[0] == WEIGHTS[start : start + CHUNK_BYTES]
    assert readers
    assert threading.current_thread() not in readers
    opened.close()
    again.close()


def test_what_memory_holds_is_not_fetched_again_by_readahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not get into the file: the write queue was full."""
    bench = Bench(tmp_path, write_queue_bytes=8 * MIB)
    write = bench.disk.write

    def held_up(
        label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        assert bench.disk.gate.wait(20)
        write(label, descriptor, buffers, offset, cached=cached)

    monkeypatch.setattr(bench.disk, "write", held_up)
    opened, second = bench.open(), bench.open()
    reader = opened._reader
    assert reader is not None
    file = reader.file
    assert file is not None
    bench.disk.gate.clear()
    bench.origin.gate.clear()
    opened.read(0, 1, lambda _: None)
    assert bench.cache.write_back.reserve(8 * MIB)
    bench.origin.gate.set()
    assert eventually(lambda: not reader._in_flight)
    bench.disk.gate.set()
    assert eventually(lambda: not reader._unwritten)
    bench.cache.write_back.release(8 * MIB)
    lost = [chunk for chunk in range(chunk_count(len(WEIGHTS))) if chunk in reader._held and not file.is_present(chunk)]
    assert lost
    before = len(bench.origin.requests)
    read(second, 0, 1)
    assert eventually(lambda: not reader._in_flight)
    requested = [asked for _, asked in bench.origin.requests[before:]]
    assert not [chunk for chunk in lost for asked in requested if asked.start <= chunk * CHUNK_BYTES < asked.stop]
    opened.close()
    second.close()
    bench.close()


def test_what_is_held_is_measured(bench: Bench) -> None:
    opened = bench.open()
    read(opened, 0, 1)
    assert eventually(bench.is_complete)
    warmups: Any = None  # those of no mount
    measured = measurements((), bench.chunks, bench.cache, VolumeReadCounts(), warmups)
    assert measured.held_bytes == len(WEIGHTS) - CHUNK_BYTES
    opened.close()


# -- the table --


@given(
    st.lists(st.tuples(st.sampled_from(["hold", "take", "drop"]), st.integers(0, 3), st.integers(1, 9)), max_size=60)
)
def test_held_bytes_are_those_of_chunks_that_were_not_read(steps: list[tuple[str, int, int]]) -> None:
    budget, unread = HeldBytes(20), dict[int, int]()
    held = HeldChunks(budget)
    for step, chunk, count in steps:
        if step == "hold":
            fits = chunk not in unread and 9 * (len(unread) + 1) <= 20
            assert held.hold(chunk, [memoryview(bytes([chunk] * 9))], count) is fits
            if fits:
                unread[chunk] = count
        elif step == "take":
            parts = held.take(chunk, count)
            assert (parts is not None) == (chunk in unread)
            if parts is not None:
                assert bytes(parts[0]) == bytes([chunk] * 9)
                unread[chunk] -= count
                if unread[chunk] <= 0:
                    del unread[chunk]
        else:
            held.drop()
            unread.clear()
        assert bool(held) == bool(unread)
        assert [number for number in range(4) if number in held] == sorted(unread)
        assert budget.count_bytes == 9 * len(unread)


def test_readers_share_one_budget() -> None:
    budget = HeldBytes(10)
    first, second = HeldChunks(budget), HeldChunks(budget)
    assert first.hold(0, [memoryview(bytes(6))], 6)
    assert not second.hold(0, [memoryview(bytes(6))], 6)
    first.drop()
    assert second.hold(0, [memoryview(bytes(6))], 6)
