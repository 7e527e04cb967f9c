"""Readers of a file that is fetched completely, in any order, from a store and a disk that fail and hang: each byte is
right, and nothing stays in memory or open afterwards."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.model.chunk import CHUNK_BYTES, ByteRange
from csi_driver.model.errors import HayloftError, TransientStoreError
from csi_driver.settings import MIB
from tests.support.scripted_store import ScriptedStore
from tests.unit.test_held_chunks import WEIGHTS, Bench, WatchedDisk
from tests.unit.test_write_back import eventually, read

pytestmark = pytest.mark.faults

COUNT = int(os.environ.get("HAYLOFT_FAULT_COUNT", "3"))
READERS, OPENS = 3, 6


class FailingStore(ScriptedStore):
    """Each piece of a response is the last one by this probability; sometimes the error is one that is not retried."""

    def __init__(self, objects: dict[str, bytes], draw: random.Random) -> None:
        super().__init__(objects)
        self._draw, self._rate = draw, draw.choice((0, 0.01, 0.05))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        for piece in super().read_range(key, byte_range, if_match=if_match):
            if self._draw.random() < self._rate:
                raise TransientStoreError("made up") if self._draw.random() < 0.6 else HayloftError("made up")
            time.sleep(self._draw.random() * 0.003)
            yield piece


class CountingDisk(WatchedDisk):
    """Knows the descriptors for direct writes that are open."""

    def __init__(self) -> None:
        super().__init__()
        self._counting = threading.Lock()
        self.opened: set[int] = set()

    def open_direct(self, label: str, descriptor: int) -> int | None:
        with self._counting:  # a number is free for others as soon as it is closed
            opened = super().open_direct(label, descriptor)
            assert opened is not None
            self.opened.add(opened)
        return opened

    def close(self, descriptor: int) -> None:
        with self._counting:
            self.opened.discard(descriptor)
            super().close(descriptor)


def disturb(disk: WatchedDisk, draw: random.Random, stopping: threading.Event) -> None:
    """Direct writes hang, some for longer than a fetch waits for them, and fail."""
    while not stopping.wait(0.05):
        what = draw.random()
        if what < 0.4:
            disk.gate.clear()
            time.sleep(draw.choice((0.01, 0.3, 0.6)))
            disk.gate.set()
        elif what < 0.5:
            disk.error = draw.choice((errno.EIO, errno.ENOSPC))
            time.sleep(0.02)
            disk.error = None


def read_at_random(bench: Bench, draw: random.Random, wrong: list[tuple[int, int]]) -> None:
    for _ in range(OPENS):
        opened = bench.open()
        cancelled: list[threading.Event] = []
        for _ in range(draw.randrange(1, 40)):
            start, length = draw.randrange(len(WEIGHTS)), draw.randrange(1, 2 * CHUNK_BYTES)
            if draw.random() < 0.2:
                answered = threading.Event()
                pending = opened.read(start, length, lambda _, answered=answered: answered.set())  # type: ignore[misc]
                if pending is not None and opened._reader is not None:
                    opened._reader.cancel(pending)
                cancelled.append(answered)
                continue
            try:
                if read(opened, start, length) != WEIGHTS[start : start + length]:
                    wrong.append((start, length))
            except HayloftError:
                pass  # the store or the disk has failed
        for answered in cancelled:
            assert answered.wait(20)
        opened.close()


@pytest.mark.promise("S706")
@pytest.mark.promise("S707")
@pytest.mark.parametrize("seed", range(2 * COUNT))
def test_bytes_are_right_and_nothing_is_left(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    disk = CountingDisk()
    bench = Bench(tmp_path, disk, write_queue_bytes=draw.choice((4, 16, 64)) * MIB)
    bench.origin = FailingStore({"model.safetensors": WEIGHTS}, random.Random(seed))
    stopping, wrong = threading.Event(), list[tuple[int, int]]()
    disturber = threading.Thread(target=disturb, args=(disk, random.Random(seed + 1), stopping))
    readers = [
        threading.Thread(target=read_at_random, args=(bench, random.Random((seed << 8) + number), wrong))
        for number in range(READERS)
    ]
    try:
        for thread in (disturber, *readers):
            thread.start()
        for thread in readers:
            thread.join(100)
        assert not [thread for thread in readers if thread.is_alive()]
        assert wrong == []
    finally:
        stopping.set()
        disturber.join()
        disk.gate.set()
    assert eventually(lambda: bench.held_bytes == 0 and bench.cache.table.is_empty)
    assert eventually(lambda: bench.cache.write_back.pending_bytes == 0 and not disk.opened)
    assert disk.closed_in_use == 0
    bench.close()
