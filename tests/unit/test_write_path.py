"""By which way bytes are written to object files, and that each way leaves the right bytes in the file."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.cache import direct_writes
from csi_driver.cache.direct_writes import BLOCK_BYTES, FAST_BYTES_PER_S, DirectWriter, DirectWrites
from csi_driver.cache.disk import LocalDisk, disk_error
from csi_driver.cache.write_path import DiskTraits, WritePath, choose
from csi_driver.model.aligned_buffers import AlignedBuffers
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import CacheDiskFailed, CacheDiskFull, DescriptorsExhausted
from tests.support.random_bytes import random_bytes
from tests.support.warmups import WarmBench

DATA = random_bytes(3, 3 * CHUNK_BYTES)
GIB = 1 << 30
FAST, SLOW, NONE = DiskTraits(direct=True, fast=True), DiskTraits(direct=True, fast=False), DiskTraits(False, True)


@pytest.mark.promise("S434")
@pytest.mark.parametrize(
    ("for_warmup", "read_share", "dataset_bytes", "disk", "expected"),
    [
        (True, 0.0, GIB, FAST, WritePath.DIRECT),
        (True, 0.5, GIB, FAST, WritePath.CACHED),
        (True, 0.0, GIB, SLOW, WritePath.CACHED),
        (True, 0.0, GIB, NONE, WritePath.CACHED),
        (True, 1.0, 9 * GIB, SLOW, WritePath.DIRECT),
        (True, 0.0, 9 * GIB, NONE, WritePath.DROPPED),
        (False, 1.0, GIB, FAST, WritePath.CACHED),
        (False, 1.0, 9 * GIB, FAST, WritePath.DROPPED),
        (False, 0.9, 9 * GIB, FAST, WritePath.CACHED),
    ],
)
def test_the_way_is_chosen_by_dataset_memory_readers_and_disk(
    for_warmup: bool, read_share: float, dataset_bytes: int, disk: DiskTraits, expected: WritePath
) -> None:
    path = choose(
        for_warmup=for_warmup, read_share=read_share, dataset_bytes=dataset_bytes, memory_bytes=16 * GIB, disk=disk
    )
    assert path is expected


@pytest.mark.promise("S706")
@pytest.mark.parametrize(
    ("disk", "expected"), [(FAST, WritePath.DIRECT), (SLOW, WritePath.CACHED), (NONE, WritePath.CACHED)]
)
@pytest.mark.parametrize("read_share", [0.0, 0.5, 1.0])
def test_what_is_held_for_its_reader_is_written_directly_where_that_is_fast(
    read_share: float, disk: DiskTraits, expected: WritePath
) -> None:
    path = choose(
        for_warmup=False, read_share=read_share, dataset_bytes=GIB, memory_bytes=16 * GIB, disk=disk, held=True
    )
    assert path is expected


class PickyDisk(LocalDisk):
    """Takes ``takes`` direct writes and then refuses with ``number``; the last one that it takes is written in part."""

    def __init__(self, takes: int, number: int = errno.EINVAL, part_bytes: int = 0) -> None:
        self.takes, self.number, self.part_bytes = takes, number, part_bytes
        self.direct_bytes = 0
        self.opened: set[int] = set()

    def open_direct(self, label: str, descriptor: int) -> int | None:
        opened = super().open_direct(label, descriptor)
        if opened is not None:
            self.opened.add(opened)
        return opened

    def close(self, descriptor: int) -> None:
        self.opened.remove(descriptor)
        super().close(descriptor)

    def write_direct(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.takes -= 1
        if self.takes < 0:
            if self.number != errno.EINVAL:
                raise disk_error(label, OSError(self.number, "refused"))
            return 0
        if not self.takes and self.part_bytes:
            buffers = [memoryview(b"".join(buffers))[: self.part_bytes]]
            written = os.pwrite(self._plain(descriptor), buffers[0], offset)
        else:
            written = super().write_direct(label, descriptor, buffers, offset)
        self.direct_bytes += written
        return written

    def _plain(self, descriptor: int) -> int:
        """Without O_DIRECT, which would refuse a part of a block."""
        plain = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY)
        self._plains = [*getattr(self, "_plains", []), plain]
        return plain

    def end(self) -> None:
        for plain in getattr(self, "_plains", []):
            os.close(plain)


def pieces_of(data: memoryview, cuts: Sequence[int]) -> list[memoryview]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


@pytest.mark.promise("S435")
@given(
    st.integers(1, CHUNK_BYTES),
    st.lists(st.one_of(st.integers(0, CHUNK_BYTES), st.integers(0, 256).map(lambda n: n * BLOCK_BYTES)), max_size=6),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 3 * BLOCK_BYTES),
)
def test_every_byte_is_right_whatever_is_aligned_refused_or_written_in_part(
    tmp_path_factory: pytest.TempPathFactory, length: int, cuts: list[int], aligned: bool, takes: int, part_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("direct", numbered=True) / "file"
    memory = memoryview(mmap.mmap(-1, CHUNK_BYTES)) if aligned else memoryview(bytearray(CHUNK_BYTES + 1))[1:]
    memory[:length] = DATA[:length]
    disk = PickyDisk(takes, part_bytes=part_bytes)
    descriptor = disk.create("create", path)
    os.ftruncate(descriptor, 2 * CHUNK_BYTES + length)
    writer = DirectWriter(DirectWrites(disk, "ext4"), descriptor, ByteRange(0, 2 * CHUNK_BYTES + length))
    writer.write("chunk.write", descriptor, [memoryview(DATA)[:CHUNK_BYTES]], 0)
    writer.write("chunk.write", descriptor, pieces_of(memory[:length], cuts), 2 * CHUNK_BYTES)
    assert os.pread(descriptor, CHUNK_BYTES, 0) == DATA[:CHUNK_BYTES]
    assert os.pread(descriptor, CHUNK_BYTES, CHUNK_BYTES) == bytes(CHUNK_BYTES)
    assert os.pread(descriptor, CHUNK_BYTES, 2 * CHUNK_BYTES) == DATA[:length]
    assert os.fstat(descriptor).st_size == 2 * CHUNK_BYTES + length
    writer.close()
    assert not disk.opened
    disk.end()
    os.close(descriptor)
    path.unlink()


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, CacheDiskFailed), (errno.ENOSPC, CacheDiskFull)])
def test_an_error_of_the_disk_is_no_refusal(tmp_path: Path, number: int, error: type[Exception]) -> None:
    disk = PickyDisk(0, number)
    writes, descriptor = DirectWrites(disk, "xfs"), disk.create("create", tmp_path / "file")
    writer = DirectWriter(writes, descriptor, ByteRange(0, CHUNK_BYTES))
    with pytest.raises(error):
        writer.write("chunk.write", descriptor, [memoryview(DATA)[:CHUNK_BYTES]], 0)
    assert writes.traits.direct
    writer.close()
    os.close(descriptor)


@pytest.mark.parametrize("error", [None, DescriptorsExhausted("none left")])
def test_a_file_that_cannot_be_opened_directly_is_written_by_the_page_cache(
    tmp_path: Path, error: DescriptorsExhausted | None
) -> None:
    class Refusing(LocalDisk):
        def open_direct(self, label: str, descriptor: int) -> int | None:
            if error is not None:
                raise error
            return None

    disk = Refusing()
    writes, descriptor = DirectWrites(disk, "btrfs"), disk.create("create", tmp_path / "file")
    writer = DirectWriter(writes, descriptor, ByteRange(0, CHUNK_BYTES))
    writer.write("chunk.write", descriptor, [memoryview(DATA)[:CHUNK_BYTES]], 0)
    assert os.pread(descriptor, CHUNK_BYTES, 0) == DATA[:CHUNK_BYTES]
    assert writes.traits.direct == (error is not None), "what was for want of a descriptor is tried again"
    writer.close()
    os.close(descriptor)


@pytest.mark.parametrize("file_system", ["tmpfs", "overlayfs", "zfs", "unknown"])
def test_other_file_systems_get_no_direct_writes(file_system: str) -> None:
    assert not DirectWrites(LocalDisk(), file_system).traits.direct


def test_a_kernel_without_dropped_writes_gets_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi_driver.cache.disk._RWF_DONTCACHE", 0x4000_0000)
    disk = LocalDisk()
    descriptor = disk.create("create", tmp_path / "file")
    for offset in (0, 10):
        disk.write("chunk.write", descriptor, [memoryview(b"some bytes")], offset, cached=False)
    assert os.pread(descriptor, 100, 0) == b"some bytes" * 2
    os.close(descriptor)


def test_dropped_writes_leave_the_right_bytes(tmp_path: Path) -> None:
    disk = LocalDisk()
    descriptor = disk.create("create", tmp_path / "file")
    disk.write("chunk.write", descriptor, pieces_of(memoryview(DATA), [5, 4096, 70000]), 7, cached=False)
    assert os.pread(descriptor, len(DATA), 7) == DATA
    os.close(descriptor)


class TimedDisk(LocalDisk):
    """Direct writes take as long as the rate says."""

    def __init__(self, bytes_per_s: float) -> None:
        self.now, self.bytes_per_s = 0.0, bytes_per_s

    def write_direct(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = sum(map(len, buffers))
        self.now += count / self.bytes_per_s
        return count


def test_a_slow_disk_is_found_out_and_measured_again_after_a_minute() -> None:
    disk = TimedDisk(FAST_BYTES_PER_S / 2)
    writes = DirectWrites(disk, "ext4", lambda: disk.now)
    buffer = memoryview(bytearray(CHUNK_BYTES))

    def write(chunks: int) -> None:
        for _ in range(chunks):
            writes.write("chunk.write", -1, [buffer], 0)
            disk.now += 1.0  # idle, which does not count

    write(31)
    assert writes.traits == FAST, "not known yet"
    write(1)
    assert writes.traits == SLOW
    disk.now += direct_writes._RETRY_S
    assert writes.traits == FAST
    write(32)
    assert writes.traits == SLOW
    disk.bytes_per_s = FAST_BYTES_PER_S * 2
    write(32)
    assert writes.traits == FAST


@pytest.mark.parametrize(("busy_ms", "expected"), [(50, FAST), (500, SLOW)])
def test_a_disk_is_not_slow_because_its_writers_wait_for_a_processor(
    tmp_path: Path, busy_ms: int, expected: DiskTraits
) -> None:
    """The disk was busy for so long with 32 MiB."""
    disk, counters = TimedDisk(FAST_BYTES_PER_S / 2), tmp_path / "stat"
    counters.write_text("    1 0 100 7 1 0 200 9 0 70 16\n")
    writes = DirectWrites(disk, "ext4", lambda: disk.now, counters)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    counters.write_text(f"    9 0 150 7 9 0 {200 + (32 << 20) // 512 - 50} 9 0 {70 + busy_ms} 16\n")
    for _ in range(32):
        writes.write("chunk.write", -1, [buffer], 0)
    assert writes.traits == expected


@pytest.mark.parametrize("content", [None, "", "1 2 3", "a b c d e f g h i j k l"])
def test_a_disk_without_counters_is_judged_by_its_writes(tmp_path: Path, content: str | None) -> None:
    disk, counters = TimedDisk(FAST_BYTES_PER_S / 2), tmp_path / "stat"
    if content is not None:
        counters.write_text(content)
    writes = DirectWrites(disk, "ext4", lambda: disk.now, counters)
    for _ in range(32):
        writes.write("chunk.write", -1, [memoryview(bytearray(CHUNK_BYTES))], 0)
    assert writes.traits == SLOW


# -- buffers --


def test_a_piece_is_used_again_after_its_last_view_and_not_before() -> None:
    buffers = AlignedBuffers(8192, most_idle=2)
    first = buffers.take()
    first[:4] = b"kept"
    part = first[:4].toreadonly()
    del first
    gc.collect()
    second = buffers.take()
    second[:4] = b"else"
    assert part == b"kept"
    del part
    third = buffers.take()
    assert third[:4] == b"kept", "the memory of the first"
    del second, third
    assert len(buffers._idle) == 2
    assert not buffers._lent


@given(st.lists(st.tuples(st.sampled_from(["take", "cut", "drop"]), st.integers(0, 9)), max_size=60))
def test_no_two_views_in_use_share_memory(steps: list[tuple[str, int]]) -> None:
    buffers, views = AlignedBuffers(4096, most_idle=3), list[tuple[int, memoryview]]()
    for number, (step, which) in enumerate(steps):
        if step == "take":
            view = buffers.take()
            view[:] = number.to_bytes(2, "big") * 2048
            views.append((number, view))
        elif views:
            mark, view = views[which % len(views)]
            if step == "cut":
                views.append((mark, view[len(view) // 2 :]))
            else:
                views.pop(which % len(views))
            del view
        for mark, view in views:
            assert len(view) < 2 or bytes(view[-2:]) == mark.to_bytes(2, "big")
        assert len(buffers._idle) <= 3


# -- a warmup --


def cached_share(path: Path) -> float:
    """Of the file's pages, how many are in the page cache."""
    size = path.stat().st_size
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as memory:
        start = (ctypes.c_ubyte * size).from_buffer(memory)
        assert ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size), found) == 0
        del start
    return sum(present & 1 for present in found) / len(found)


@pytest.mark.promise("S434")
def test_a_warmup_leaves_large_files_on_the_disk_and_not_in_the_page_cache(tmp_path: Path) -> None:
    data = random_bytes(1, 20 * CHUNK_BYTES + 12345)
    bench = WarmBench(tmp_path, {"large": data})
    if not bench.chunks._direct_writes.traits.direct:
        pytest.skip("needs a file system with direct writes")
    bench.run()
    path = Path(bench.chunks._objects.complete_path(bench.origin.version("large").digest(CHUNK_BYTES)))
    assert cached_share(path) < 0.1
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 < len(data) + CHUNK_BYTES, "nothing is allocated beyond its end"
    bench.close()


def test_a_warmup_on_a_disk_that_refuses_in_mid_file_stores_the_right_bytes(tmp_path: Path) -> None:
    data = random_bytes(2, 20 * CHUNK_BYTES + 12345)
    disk = PickyDisk(5)
    bench = WarmBench(tmp_path, {"large": data}, disk=disk)
    bench.run()
    path = Path(bench.chunks._objects.complete_path(bench.origin.version("large").digest(CHUNK_BYTES)))
    assert path.read_bytes() == data
    assert disk.direct_bytes or not bench.chunks._direct_writes.traits.direct
    assert not bench.chunks._direct_writes.traits.direct
    assert not disk.opened
    bench.close()
