"""A cache disk that fails, by label, always or with a probability; and bits that flip on it."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

from csi_driver.cache.disk import LocalDisk, disk_error


class FaultyDisk(LocalDisk):
    """Steps with a label that begins with one of ``labels`` fail with ``number``, with the given ``probability``."""

    def __init__(
        self, labels: Sequence[str] = (), *, probability: float = 1.0, number: int = errno.EIO, seed: int = 1
    ) -> None:
        self.labels = tuple(labels)
        self.probability = probability
        self.number = number
        self.failed = 0
        self._draw = random.Random(seed)
        self._lock = threading.Lock()  # guards the generator and the count

    def _perhaps(self, label: str) -> None:
        with self._lock:
            fails = label.startswith(self.labels) and self._draw.random() < self.probability if self.labels else False
            self.failed += fails
        if fails:
            raise disk_error(label, OSError(self.number, os.strerror(self.number)))

    def create_new(self, label: str, path: Path | str) -> int | None:
        self._perhaps(label)
        return super().create_new(label, path)

    def open(self, label: str, path: Path | str) -> int | None:
        self._perhaps(label)
        return super().open(label, path)

    def write(
        self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int, *, cached: bool = True
    ) -> None:
        self._perhaps(label)
        super().write(label, descriptor, buffers, offset, cached=cached)

    def write_direct(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._perhaps(label)
        return super().write_direct(label, descriptor, buffers, offset)

    def read(self, label: str, descriptor: int, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        self._perhaps(label)
        return super().read(label, descriptor, buffers, offset)

    def read_cached(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._perhaps(label)
        return super().read_cached(label, descriptor, buffers, offset)

    def sync(self, label: str, descriptor: int) -> None:
        self._perhaps(label)
        super().sync(label, descriptor)

    def rename(self, label: str, source: Path | str, target: Path | str) -> None:
        self._perhaps(label)
        super().rename(label, source, target)


def flip_a_bit(path: Path, offset: int, bit: int = 3) -> None:
    """Changes one bit of a file, whatever its mode."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, offset)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << bit]), offset)
    finally:
        os.close(descriptor)
