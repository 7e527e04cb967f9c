"""Volumes whose stores hang, and others that read meanwhile, in one read-through cache."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.disk import LocalDisk
from csi_driver.model.chunk import CHUNK_BYTES, chunk_count
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.warmup import Warmup
from csi_driver.reading.warmup_progress import Progress
from csi_driver.settings import MIB, ChunkStoreSettings, ReadingSettings
from tests.support.hostile_s3 import HostileS3
from tests.support.own_event_loop import OwnLoopCache
from tests.support.silent_server import SilentServer
from tests.unit.test_write_back import read_whole, waited

SIZES = {"small": 100_000, "whole": 3 * MIB, "large": 9 * MIB + 5}
OBJECTS = {
    f"{kind}-{number}": random.Random(number).randbytes(size_bytes)
    for kind, size_bytes in SIZES.items()
    for number in range(4)
}
HEADERS = b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nETag: "e"\r\n\r\n'
FEW = [Share("", f"store-{number}", f"hanging-{number}") for number in range(2)]
MANY = [Share(f"team-{number % 4}", f"store-{number}", f"hanging-{number}") for number in range(20)]
VICTIM = Share("team-v", "store-v", "victim")


class ColdDisk(LocalDisk):
    """Nothing of it is in the page cache."""

    def read_cached(self, label: str, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return 0


class Bench:
    def __init__(self, directory: Path) -> None:
        self._stack = ExitStack()
        self.store = self._stack.enter_context(HostileS3(OBJECTS))
        settings = ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, ColdDisk())
        self._stack.callback(self.chunks.close)
        self.cache = OwnLoopCache(self.chunks, ReadingSettings())
        self._victim = self._open(self.store.endpoint)
        self._hanging: list[tuple[SilentServer, Share, ObjectStore]] = []

    def hang(self, shares: Sequence[Share], answer: bytes) -> None:
        """Opens a store that hangs for each share."""
        for share in shares:
            server = self._stack.enter_context(SilentServer(answer))
            self._hanging.append((server, share, self._open(server.endpoint)))

    def read_hanging(self) -> None:
        """Requests objects of every hanging store."""
        for kind, count in (("small", 64), ("whole", 16), ("large", 8)):
            for number in range(count):
                for source in self.hanging_sources(f"{kind}-{number}", SIZES[kind]):
                    self.cache.open(source, _read_first_chunk)

    def hanging_sources(self, key: str, size_bytes: int) -> list[ObjectSource]:
        return [
            ObjectSource(ObjectVersion("d", store.endpoint, "data", key, "e", size_bytes), store, share=share)
            for _, share, store in self._hanging
        ]

    def source(self, key: str) -> ObjectSource:
        version = ObjectVersion("d", self._victim.endpoint, "data", key, self.store.etag(key), len(OBJECTS[key]))
        return ObjectSource(version, self._victim, share=VICTIM)

    def read(self, key: str) -> bytes:
        opened = waited(lambda answer: self.cache.open(self.source(key), answer))
        assert isinstance(opened, OpenObject), opened
        try:
            return read_whole(opened, OBJECTS[key])
        finally:
            opened.close()

    def close(self) -> None:
        # The servers last: their end ends the requests that hang.
        closing = threading.Thread(target=self.cache.close)
        closing.start()
        closing.join()
        for _, _, store in self._hanging:
            # No retry after that: it would go on beside later tests, and reach servers of theirs on the same port.
            object.__setattr__(store._policy, "clock", lambda: math.inf)  # type: ignore[attr-defined]
        self._stack.close()

    def _open(self, endpoint: str) -> ObjectStore:
        options = StoreOptions(endpoint=endpoint, request_timeout_s=60.0, deadline_s=60.0)
        store = open_store(
            DatasetUrl.parse("s3://data/"), options, Credentials({"access_key_id": "a", "secret_access_key": "b"})
        )
        self._stack.callback(store.close)
        return store


def _read_first_chunk(opened: object) -> None:
    if isinstance(opened, OpenObject):
        opened.read(0, CHUNK_BYTES, lambda data: None)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.promise("S160")
@pytest.mark.parametrize("answer", [b"", HEADERS], ids=["silent", "headers"])
@pytest.mark.parametrize("shares", [FEW, MANY], ids=["2", "20"])
def test_cold_reads_of_a_volume_do_not_wait_for_the_stores_of_others(
    bench: Bench, shares: Sequence[Share], answer: bytes
) -> None:
    bench.hang(shares, answer)
    bench.read_hanging()
    for key in OBJECTS:
        assert bench.read(key) == OBJECTS[key]


@pytest.mark.promise("S160")
def test_reads_from_the_disk_do_not_wait_for_the_stores_of_others(bench: Bench) -> None:
    for key in OBJECTS:
        bench.read(key)
    bench.hang(FEW, b"")
    bench.read_hanging()
    sent = len(bench.store.requests)
    for key in OBJECTS:
        assert bench.read(key) == OBJECTS[key]
    assert len(bench.store.requests) == sent


class _Files:
    """Objects that a warmup fetches."""

    def __init__(self, sources: Sequence[ObjectSource]) -> None:
        self._sources = sources

    def chosen(self, _stopping: object) -> Sequence[int]:
        return range(len(self._sources))

    def size_bytes(self, number: int) -> int:
        return self._sources[number].version.size_bytes

    def wanted(self, number: int) -> tuple[range, ...]:
        return (range(chunk_count(self.size_bytes(number))),)

    def source(self, number: int) -> ObjectSource:
        return self._sources[number]


@pytest.mark.promise("S161")
@pytest.mark.parametrize("kind", SIZES)
def test_a_warmup_does_not_wait_for_warmups_and_readers_whose_stores_hang(bench: Bench, kind: str) -> None:
    bench.hang(MANY, b"")
    bench.read_hanging()
    ends = list[Progress]()

    def warmup(name: str, sources: Sequence[ObjectSource]) -> Warmup:
        made = Warmup(name, _Files(sources), bench.cache, lambda count_bytes: True, ended=ends.append)
        made.start()
        return made

    by_key = [bench.hanging_sources(f"warm-{number}", SIZES[kind]) for number in range(20)]
    hanging = [warmup(f"hanging-{number}", sources) for number, sources in enumerate(zip(*by_key, strict=True))]
    victim = warmup("victim", [bench.source(key) for key in OBJECTS])
    assert victim.join(60)
    assert ends[-1].done_files == len(OBJECTS)
    for made in hanging:
        made.stop(cancelled=True)
