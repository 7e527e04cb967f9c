"""Answers reads of bytes that are in an object file."""

from __future__ import annotations

import threading
from collections.abc import Callable

from csi_driver.cache.object_file import ObjectFile
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import CacheDiskFailed, CacheError
from csi_driver.model.read_counts import ReadCounts, WaitsFor
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import Fetcher, Job
from csi_driver.reading.pending_read import Data

_scratch = threading.local()


def scratch_buffer(count_bytes: int) -> memoryview:
    """A buffer of this thread, overwritten by its next use: a new one for each read would be zeroed and faulted in."""
    buffer: memoryview | None = getattr(_scratch, "buffer", None)
    if buffer is None or len(buffer) < count_bytes:
        buffer = _scratch.buffer = memoryview(bytearray(max(count_bytes, CHUNK_BYTES)))
    return buffer[:count_bytes]


def read_cached(file: ObjectFile, byte_range: ByteRange, buffer: memoryview) -> None:
    """Fills the buffer. Blocks on the disk. Raises CacheDiskFailed, also when the file is too short."""
    if file.read(byte_range, buffer) != len(byte_range):
        raise CacheDiskFailed(f"object file {file.digest} is shorter than its object")


def answer_cached(
    fetcher: Fetcher,
    file: ObjectFile,
    byte_range: ByteRange,
    data: Data,
    failed: Callable[[CacheError], None],
    share: Share,
    counts: ReadCounts,
) -> None:
    """Answers at once from the page cache, and otherwise from the disk on another thread: the calling
    thread serves all requests of a mount. ``failed`` is called instead when the disk cannot return the bytes."""
    buffer = scratch_buffer(len(byte_range))
    try:
        if file.read_cached(byte_range, buffer):
            counts.answered_at_once(len(buffer))
            data([buffer])
            return
    except CacheError as error:
        failed(error)
        return

    if not file.acquire():
        failed(CacheDiskFailed(f"object file {file.digest} was closed while it was read"))
        return
    wait = counts.begin_wait(WaitsFor.DISK)

    def read() -> None:
        buffer = scratch_buffer(len(byte_range))
        try:
            try:
                read_cached(file, byte_range, buffer)
            except BaseException:
                wait.end()
                raise
            wait.end(len(buffer))
        except CacheError as error:
            failed(error)
        else:
            data([buffer])
        finally:
            file.release()

    fetcher.read_disk(Job(read, data), share)
