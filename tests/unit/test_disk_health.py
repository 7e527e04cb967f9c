"""A cache disk that keeps failing is taken out of use, and used again when it works again."""

from __future__ import annotations

import errno
import logging
import threading
from functools import partial
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk_health import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_FAILURES, WINDOW_S, DiskHealth
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.conditions import CACHE_DISK_FAILING
from csi_driver.model.errors import CacheDiskFailed
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ReadingSettings
from tests.support.daemons import wait_until
from tests.support.faulty_disk import FaultyDisk
from tests.support.own_event_loop import OwnLoopCache
from tests.support.random_bytes import random_bytes
from tests.support.scripted_store import ScriptedStore
from tests.unit.test_chunk_store import settings
from tests.unit.test_reading import read, read_whole, waited

LARGE = random_bytes(8, 6 * CHUNK_BYTES + 77)
SMALL = random_bytes(9, 50_000)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def worn(tmp_path: Path, disk: FaultyDisk, clock: Clock) -> DiskHealth:
    health = DiskHealth(disk, str(tmp_path), clock)
    for _ in range(MOST_FAILURES):
        health.failed("EIO")
    return health


def test_few_failures_or_slow_ones_do_not_take_a_disk_out_of_use(tmp_path: Path) -> None:
    clock = Clock()
    health = DiskHealth(FaultyDisk(), str(tmp_path), clock)
    for _ in range(5 * MOST_FAILURES):
        health.failed("EIO")
        clock.now += WINDOW_S / (MOST_FAILURES - 1) + 0.01
    assert health.in_use
    assert health.message == ""


@pytest.mark.promise("S69")
def test_many_failures_take_a_disk_out_of_use_with_one_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    health = worn(tmp_path, FaultyDisk(), Clock())
    for _ in range(100):
        health.failed("EIO")
    assert not health.in_use
    assert len([line for line in caplog.records if line.levelno == logging.ERROR]) == 1
    with pytest.raises(CacheDiskFailed, match="keeps failing"):
        health.require()


@pytest.mark.promise("S69")
def test_a_disk_that_works_again_comes_back_after_a_trial(tmp_path: Path) -> None:
    clock, disk = Clock(), FaultyDisk(("trial.sync",))
    health = worn(tmp_path, disk, clock)
    health.poll()
    assert disk.failed == 0  # not yet
    clock.now += FIRST_PAUSE_S
    health.poll()
    assert (health.in_use, disk.failed) == (False, 1)
    disk.labels = ()
    clock.now += FIRST_PAUSE_S
    health.poll()
    assert not health.in_use  # the second pause is longer
    clock.now += FIRST_PAUSE_S
    health.poll()
    assert health.in_use
    assert list(tmp_path.iterdir()) == []


def test_trials_are_never_further_apart_than_the_longest_pause(tmp_path: Path) -> None:
    clock, disk = Clock(), FaultyDisk(("trial",))
    health = worn(tmp_path, disk, clock)
    for _ in range(20):
        clock.now += LONGEST_PAUSE_S
        health.poll()
    assert disk.failed == 20


@pytest.mark.promise("S221")
def test_a_trial_without_a_descriptor_is_repeated_and_counts_as_none(tmp_path: Path) -> None:
    clock, disk = Clock(), FaultyDisk(("trial.create",), number=errno.EMFILE)
    health = worn(tmp_path, disk, clock)
    clock.now += FIRST_PAUSE_S
    for _ in range(3):
        health.poll()
    assert (health.in_use, disk.failed) == (False, 3)
    disk.labels = ()
    health.poll()
    assert health.in_use


@pytest.mark.promise("S221")
@pytest.mark.promise("S68")
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("probability", [0.3, 1.0])
@pytest.mark.parametrize("labels", [("chunk.write",), ("chunk.read",), ("object.open",), ("object.",), ("",)])
def test_readers_get_the_right_bytes_whichever_step_of_the_disk_fails(
    tmp_path: Path, labels: tuple[str, ...], probability: float, number: int
) -> None:
    disk = FaultyDisk(labels, probability=probability, number=number)
    origin = ScriptedStore({"large": LARGE, "small": SMALL})
    chunks = ChunkStore(settings(tmp_path), disk)
    library = OwnLoopCache(chunks, ReadingSettings())
    wrong: list[str] = []

    def read_often(key: str, content: bytes) -> None:
        for _ in range(4):
            opened = waited(lambda answer: library.open(ObjectSource(origin.version(key), origin), answer))
            if not isinstance(opened, OpenObject) or read_whole(opened, len(content)) != content:
                wrong.append(key)
                return
            opened.close()

    try:
        work = [("large", LARGE), ("small", SMALL)] * 2
        threads = [threading.Thread(target=read_often, args=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert disk.failed > 0
        if number != errno.EIO:
            assert (chunks.health.failures, chunks.health.in_use) == (0, True), "a full table is no fault of the disk"
    finally:
        disk.labels = ()
        library.close()
        chunks.close()


@pytest.mark.promise("S69")
def test_out_of_use_nothing_touches_the_disk_and_each_byte_comes_from_the_store_once_a_read(tmp_path: Path) -> None:
    disk = FaultyDisk()
    origin = ScriptedStore({"large": LARGE, "small": SMALL})
    chunks = ChunkStore(settings(tmp_path), disk)
    library = OwnLoopCache(chunks, ReadingSettings())
    try:
        for _ in range(MOST_FAILURES):
            chunks.health.failed("EIO")
        disk.labels = ("",)
        for _ in range(2):
            for key, content in origin.objects.items():
                source = ObjectSource(origin.version(key), origin)
                opened = waited(partial(library.open, source))
                assert isinstance(opened, OpenObject)
                assert read_whole(opened, len(content)) == content
                opened.close()
        assert disk.failed == 0
        assert origin.bytes_sent == 2 * (len(LARGE) + len(SMALL))
        assert chunks.conditions() == [CACHE_DISK_FAILING]
    finally:
        disk.labels = ()
        library.close()
        chunks.close()


def test_a_pending_read_gets_its_cached_chunk_from_the_store_when_the_disk_fails_meanwhile(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    origin = ScriptedStore({"large": LARGE})
    chunks = ChunkStore(settings(tmp_path), disk)
    library = OwnLoopCache(chunks, ReadingSettings(readahead_fetches=0))
    try:
        opened = waited(lambda answer: library.open(ObjectSource(origin.version("large"), origin), answer))
        assert isinstance(opened, OpenObject)
        at = 3 * CHUNK_BYTES + 50_000
        assert read(opened, at, 4096) == LARGE[at : at + 4096]
        wait_until(lambda: chunks.present_bytes(origin.version("large")) == CHUNK_BYTES)
        disk.labels = ("chunk.read",)
        start = 4 * CHUNK_BYTES - 1000
        assert read(opened, start, 2000) == LARGE[start : start + 2000]
        assert disk.failed == 1
        opened.close()
    finally:
        disk.labels = ()
        library.close()
        chunks.close()
