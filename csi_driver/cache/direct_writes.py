"""Writes past the page cache: whether the disk takes them, how fast it is, and the parts that have to be aligned."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from csi_driver.cache.disk import Disk
from csi_driver.cache.write_path import DiskTraits
from csi_driver.model.aligned_buffers import AlignedBuffers
from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import DescriptorsExhausted

logger = logging.getLogger(__name__)

BLOCK_BYTES = 4096
"""Offsets and lengths are multiples of it: more than the logical blocks of any usual disk. A disk with larger ones
refuses, and gets its bytes by the page cache."""

_SUITABLE = frozenset({"ext4", "xfs", "btrfs"})
"""File systems that keep direct writes and the page cache coherent."""

FAST_BYTES_PER_S = 200_000_000
"""A disk that takes less is slow beside a store."""

_SECTOR_BYTES = 512
"""The unit of the kernel's counters, whatever the disk's own is."""

_MEASURED_BYTES = 32 << 20
"""After so many the rate is known, and again after each so many."""

_RETRY_S = 60.0
"""A slow disk is measured again after so long; it may have been busy."""

_bounce_buffers = AlignedBuffers(CHUNK_BYTES, most_idle=8)


class _Counters(NamedTuple):
    """What a disk has done: bytes, and the seconds in which it had anything to do."""

    count_bytes: int
    busy_s: float

    def rate(self, since: _Counters) -> float:
        """Bytes per busy second."""
        busy_s = self.busy_s - since.busy_s
        return (self.count_bytes - since.count_bytes) / busy_s if busy_s > 0 else float("inf")


class DirectWrites:
    """The direct writes of a chunk store. Methods may be called from any thread.

    A write that takes long says little on a machine that is short of processors. So the disk is slow only if the
    kernel's counters of it say so too, where there are any.

    ``_lock`` guards all fields but the settings; the kernel's counters are read under it, and the disk is not used.
    """

    def __init__(
        self,
        disk: Disk,
        file_system: str,
        clock: Callable[[], float] = time.monotonic,
        counters: Path | None = None,
    ) -> None:
        """``counters``: the file ``stat`` of the block device."""
        self.disk = disk
        self._clock = clock
        self._counters_path = counters
        self._lock = threading.Lock()
        self._possible = file_system in _SUITABLE
        self._fast = True
        self._retry_at = 0.0
        self._running = 0
        self._busy_from = 0.0
        self._own = _Counters(0, 0.0)
        """Of the direct writes since the last measurement."""
        self._device = self._device_counters()

    @property
    def traits(self) -> DiskTraits:
        """What is known of the disk. Without the lock: approximate."""
        return DiskTraits(self._possible, self._fast or self._clock() >= self._retry_at)

    def refused(self) -> None:
        """The file system takes no direct writes: none is tried again."""
        with self._lock:
            was_possible, self._possible = self._possible, False
        if was_possible:
            logger.info("the cache disk takes no direct writes (O_DIRECT): warmups write by the page cache")

    def write(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """``Disk.write_direct``, measured: the rate of the disk while any write is in flight."""
        with self._lock:
            if not self._running:
                self._busy_from = self._clock()
            self._running += 1
        written = 0
        try:
            written = self.disk.write_direct(label, descriptor, buffers, offset)
        finally:
            with self._lock:
                self._running -= 1
                now = self._clock()
                self._own = _Counters(self._own.count_bytes + written, self._own.busy_s + now - self._busy_from)
                self._busy_from = now
                if self._own.count_bytes >= _MEASURED_BYTES:
                    self._measure(now)
        return written

    def _measure(self, now: float) -> None:
        """The caller holds the lock."""
        own, self._own = self._own, _Counters(0, 0.0)
        before, self._device = self._device, self._device_counters()
        self._fast = own.rate(self._own) >= FAST_BYTES_PER_S
        if before is not None and self._device is not None:
            self._fast = self._fast or self._device.rate(before) >= FAST_BYTES_PER_S
        self._retry_at = now + _RETRY_S

    def _device_counters(self) -> _Counters | None:
        if self._counters_path is None:
            return None
        try:
            fields = [int(field) for field in self._counters_path.read_text().split()]
            return _Counters((fields[2] + fields[6]) * _SECTOR_BYTES, fields[9] / 1000)
        except (OSError, ValueError, IndexError):
            return None


class DirectWriter:
    """Direct writes to one part of a file, on one thread. What cannot be written so, the tail of the last block or all
    that follows a refusal, goes by the page cache. To be closed."""

    def __init__(self, writes: DirectWrites, descriptor: int, part: ByteRange) -> None:
        """Allocates the part in one piece: chunks that several threads write one by one would be spread over the
        disk."""
        self._writes = writes
        self._direct: int | None = None
        self._bounce: memoryview | None = None
        writes.disk.allocate("chunk.allocate", descriptor, part)
        try:
            self._direct = writes.disk.open_direct("chunk.open_direct", descriptor)
        except DescriptorsExhausted:
            return
        if self._direct is None:
            writes.refused()

    def write(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> None:
        """As ``Disk.write``; ``descriptor`` is that of the page cache."""
        length = sum(map(len, buffers))
        done = self._write_blocks(label, buffers, length - length % BLOCK_BYTES, offset)
        if done < length:
            self._writes.disk.write(label, descriptor, _part(buffers, done, length), offset + done)

    def close(self) -> None:
        self._bounce = None
        if self._direct is not None:
            self._writes.disk.close(self._direct)
            self._direct = None

    def _write_blocks(self, label: str, buffers: Sequence[memoryview], count_bytes: int, offset: int) -> int:
        """How many of the first bytes, complete blocks, were written."""
        if self._direct is None or not 0 < count_bytes <= CHUNK_BYTES or offset % BLOCK_BYTES:
            return 0
        blocks = _part(buffers, 0, count_bytes)
        done = self._writes.write(label, self._direct, blocks, offset)
        if done < count_bytes:
            # Written in part or not at all, since a buffer begins or ends within a block: once more, from one that
            # does not.
            done = self._writes.write(label, self._direct, [self._copied(blocks, count_bytes)], offset)
        if not done:
            self.close()
            self._writes.refused()
        return done - done % BLOCK_BYTES

    def _copied(self, buffers: Sequence[memoryview], count_bytes: int) -> memoryview:
        if self._bounce is None:
            self._bounce = _bounce_buffers.take()
        filled = 0
        for part in buffers:
            self._bounce[filled : filled + len(part)] = part
            filled += len(part)
        return self._bounce[:count_bytes]


def device_counters(path: Path) -> Path:
    """The kernel's counters of the block device that holds the path. There are none of btrfs, which has no device of
    its own. Raises OSError."""
    device = os.stat(path).st_dev
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")


def _part(buffers: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """The bytes from ``start`` to ``stop`` of neighbouring buffers."""
    found, at = [], 0
    for part in buffers:
        if at < stop and at + len(part) > start:
            found.append(part[max(0, start - at) : stop - at])
        at += len(part)
    return found
