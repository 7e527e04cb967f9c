"""Small objects from a server into the cache: the fast path and the fallback."""

from __future__ import annotations

import queue
import random
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.crash_recovery import CrashRecovery
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import AccessDenied, CacheDiskFull, HayloftError, ObjectChanged
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.fetcher import Job
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import MAX_OBJECT_BYTES
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.daemons import wait_until
from tests.support.hostile_s3 import (
    CloseAfter,
    Fault,
    FlipBits,
    Garbage,
    Hang,
    HostileS3,
    ResetAfter,
    Slow,
    Status,
)
from tests.support.own_event_loop import OwnLoopCache
from tests.support.tls import trusted_tls
from tests.unit.test_chunk_store import crash_the_machine
from tests.unit.test_write_back import WAIT_S, StuckDisk, read, waited

DRAW = random.Random(5)
OBJECTS = {f"{number:03}": DRAW.randbytes(DRAW.randint(1, 200_000)) for number in range(60)}
KEYS = Credentials({"access_key_id": "testing", "secret_access_key": "testing"})


class Bench:
    """A read-through cache over a real server. Once ``connect`` has opened connections, requests can start at once."""

    def __init__(self, directory: Path, server: HostileS3, **options: float) -> None:
        self.server = server
        self.disk = StuckDisk()
        settings = ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, self.disk)
        self.read_through_cache = OwnLoopCache(self.chunks, ReadingSettings())
        self.fallbacks: list[str] = []
        demand = self.read_through_cache.fetcher.demand
        self.read_through_cache.fetcher.demand = lambda *job: (self.fallbacks.append("job"), demand(*job))[1]  # type: ignore[method-assign]
        chosen = {"request_timeout_s": 1.0, "deadline_s": 5.0} | options
        self.store = open_store(
            DatasetUrl.parse("s3://data/"),
            StoreOptions(endpoint=server.endpoint, ca_bundle_pem=server.trust, **chosen),  # type: ignore[arg-type]
            KEYS,
        )

    def source(self, key: str) -> ObjectSource:
        content = self.server.content(key)
        assert content is not None
        version = ObjectVersion("d", self.store.endpoint, "data", key, self.server.etag(key), len(content))
        return ObjectSource(version, self.store)

    def connect(self, connections: int = 8) -> None:
        """So many objects at a time leave so many idle connections."""
        self.server.fail_next(*[Slow(0.05)] * connections)
        self.read_all([f"{number:03}" for number in range(59, 59 - connections, -1)])
        assert self.settled()
        self.fallbacks.clear()
        self.server.requests.clear()

    def read_all(self, keys: list[str]) -> dict[str, bytes | HayloftError]:
        """All at a time, as a mount with no-open support reads them."""
        found: dict[str, bytes | HayloftError] = {}
        threads = [threading.Thread(target=lambda key=key: found.update({key: self.read(key)})) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        return found

    def read(self, key: str) -> bytes | HayloftError:
        opened = waited(lambda answer: self.read_through_cache.open_to_read(self.source(key), answer))
        if isinstance(opened, HayloftError):
            return opened
        assert isinstance(opened, OpenObject)
        try:
            return read(opened, 0, len(self.server.content(key) or b""))
        finally:
            opened.close()

    def settled(self) -> bool:
        """Waits until everything that was received is in the cache."""
        deadline = time.monotonic() + WAIT_S
        while not self.read_through_cache.table.is_empty or self.read_through_cache.small_object_fetcher.busy:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return True

    def close(self) -> None:
        self.disk.gate.set()
        self.read_through_cache.close()
        self.chunks.close()
        self.store.close()


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[HostileS3]:
    """Every test with a server runs over both. Over TLS no MD5 is verified, so that store keeps a checksum."""
    with trusted_tls() as (tls, trust), HostileS3(OBJECTS, tls=tls if request.param == "https" else None) as server:
        if request.param == "https":
            server.trust = trust
            for key, content in OBJECTS.items():
                value = b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
                server.object_headers[key] = {"x-amz-checksum-crc32": value}
        yield server


@pytest.fixture
def bench(tmp_path: Path, server: HostileS3) -> Iterator[Bench]:
    bench = Bench(tmp_path, server)
    yield bench
    bench.close()


def test_small_objects_take_one_request_each_and_no_fetch_thread(bench: Bench) -> None:
    bench.connect()
    read_through_cache, keys = bench.read_through_cache, list(OBJECTS)[:20]
    requests, origin_bytes = read_through_cache.origin_requests, read_through_cache.origin_bytes
    for key in keys:
        assert bench.read(key) == OBJECTS[key]
    assert bench.fallbacks == []
    assert len(bench.server.seen("GET")) == 20
    assert read_through_cache.origin_requests - requests == 20
    assert read_through_cache.origin_bytes - origin_bytes == sum(len(OBJECTS[key]) for key in keys)
    assert bench.settled()
    assert all(bench.chunks.is_complete(bench.source(key).version) for key in list(OBJECTS)[:20])
    assert bench.read_through_cache.integrity.counts.verified == 28


def test_requests_in_flight_count_as_work_for_readers(bench: Bench) -> None:
    """Admission lets them go first, on the event loop as on a fetch thread."""
    bench.connect()
    fetcher = bench.read_through_cache.fetcher
    warmed = threading.Event()
    bench.server.fail_next(Slow(0.6))
    reader = threading.Thread(target=bench.read, args=("001",))
    reader.start()
    wait_until(lambda: bench.server.seen("GET"))
    # Beside them one fetch of a warmup may run, or eight of up to 1 MiB: this one is the second.
    for job in (Job(lambda: reader.join(WAIT_S), count_bytes=2 << 20), Job(warmed.set, count_bytes=2 << 20)):
        fetcher.warm(job)
    assert not warmed.wait(0.2)
    assert bench.fallbacks == []
    assert warmed.wait(WAIT_S)
    assert bench.settled()


def warm(bench: Bench, key: str) -> queue.SimpleQueue[object]:
    """Receives the open of a warmup."""
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    source = bench.source(key)
    bench.read_through_cache.warm(source, answers.put, source.version.size_bytes, None)
    return answers


@pytest.mark.promise("S520")
def test_small_objects_of_a_warmup_take_no_thread_either(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.connect()
    passed_on: list[object] = []
    monkeypatch.setattr(bench.read_through_cache.fetcher, "warm", lambda *job: passed_on.append(job))
    keys = list(OBJECTS)[:8]
    for answers in [warm(bench, key) for key in keys]:
        opened = answers.get(timeout=WAIT_S)
        assert isinstance(opened, OpenObject)
        assert opened.complete
        opened.close()
    assert bench.fallbacks == passed_on == []
    assert len(bench.server.seen("GET")) == len(keys)
    assert all(bench.chunks.is_complete(bench.source(key).version) for key in keys)


@pytest.mark.promise("S524")
def test_a_reader_does_not_wait_for_the_turn_of_a_warmup_that_fetches_the_same_object(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.connect()
    cache, key = bench.read_through_cache, next(iter(OBJECTS))
    queued = threading.Event()
    queue_warm = cache.fetcher.warm

    def warm_later(job: Job, share: Share) -> None:
        cache.write_back.pending_bytes += 1 << 40  # a backlogged disk: no warmup may begin a fetch
        queue_warm(job, share)
        queued.set()

    monkeypatch.setattr(cache.fetcher, "warm", warm_later)
    bench.server.fail_next(Status(503))
    answers = warm(bench, key)
    assert queued.wait(WAIT_S)
    assert answers.empty()
    assert bench.read(key) == OBJECTS[key]
    opened = answers.get(timeout=WAIT_S)
    assert isinstance(opened, OpenObject)
    opened.close()
    cache.write_back.pending_bytes -= 1 << 40
    assert len(bench.server.seen("GET")) == 2


def test_many_objects_at_a_time_have_the_right_bytes(bench: Bench) -> None:
    assert bench.read_all(list(OBJECTS)) == OBJECTS
    assert bench.settled()
    assert bench.read_all(list(OBJECTS)) == OBJECTS


def test_more_requests_are_in_flight_than_there_are_fetch_threads(tmp_path: Path, server: HostileS3) -> None:
    """A distant store takes long for each: as many requests are in flight as there are readers."""
    bench = Bench(tmp_path, server, request_timeout_s=5.0, deadline_s=20.0)
    try:
        bench.connect(connections=2)
        bench.server.fail_all(Hang(60))
        readers = [threading.Thread(target=bench.read, args=(key,), daemon=True) for key in list(OBJECTS)[:50]]
        for reader in readers:
            reader.start()
        wait_until(lambda: len({request.key for request in bench.server.seen("GET")}) == 50)
        assert bench.fallbacks == []
        bench.server.fail_all(None)
        for reader in readers:
            reader.join(WAIT_S)
        assert bench.settled()
    finally:
        bench.close()


def test_reads_succeed_after_a_store_was_unreachable_for_a_moment(bench: Bench) -> None:
    """The known addresses refuse connections meanwhile."""
    bench.connect()
    bench.server.go_away()
    threading.Timer(0.5, bench.server.come_back).start()
    assert bench.read_all(["001", "002", "003"]) == {key: OBJECTS[key] for key in ("001", "002", "003")}
    assert bench.read("004") == OBJECTS["004"]


def test_an_open_gets_the_complete_file(bench: Bench) -> None:
    bench.connect()
    opened = waited(lambda answer: bench.read_through_cache.open(bench.source("001"), answer))
    assert isinstance(opened, OpenObject)
    assert opened.backing_descriptor is not None
    assert bench.fallbacks == []
    opened.close()


def test_larger_objects_are_fetched_by_fetch_threads(bench: Bench) -> None:
    bench.connect()
    large = DRAW.randbytes(MAX_OBJECT_BYTES + 1)
    bench.server.put("large", large)
    assert bench.read("large") == large
    assert bench.fallbacks == ["job"]


@pytest.mark.parametrize(
    "fault",
    [
        Slow(0.01),
        Status(503, "SlowDown"),
        ResetAfter(0),
        ResetAfter(5_000),
        CloseAfter(0),
        CloseAfter(5_000),
        Garbage(),
        Hang(30),
        Hang(30, body_bytes=5_000),
        FlipBits(100),
    ],
    ids=repr,
)
def test_reads_succeed_after_one_fault(bench: Bench, fault: Fault) -> None:
    bench.connect()
    bench.server.fail_next(fault)
    assert bench.read_all(["001", "002", "003"]) == {key: OBJECTS[key] for key in ("001", "002", "003")}
    assert bench.read("004") == OBJECTS["004"]


def test_an_error_of_the_store_reaches_the_reader(bench: Bench) -> None:
    bench.connect()
    bench.server.fail_all(Status(403, "AccessDenied"))
    assert isinstance(bench.read("001"), AccessDenied)
    bench.server.fail_all(None)
    source = bench.source("002")
    bench.server.put("002", b"another version")
    opened = waited(lambda answer: bench.read_through_cache.open_to_read(source, answer))
    assert isinstance(opened, ObjectChanged)
    assert bench.read("003") == OBJECTS["003"]


def test_an_object_that_hangs_does_not_delay_the_others(tmp_path: Path, server: HostileS3) -> None:
    bench = Bench(tmp_path, server, request_timeout_s=3.0, deadline_s=60.0)
    try:
        bench.connect()
        bench.server.fail_next(Hang(60))
        stuck = threading.Thread(target=bench.read, args=("001",), daemon=True)
        stuck.start()
        wait_until(lambda: len(bench.server.seen("GET")) == 1)
        assert bench.read_all(["002", "003", "004"]) == {key: OBJECTS[key] for key in ("002", "003", "004")}
        assert stuck.is_alive(), "the others did not wait for it"
        stuck.join(WAIT_S)
        assert not stuck.is_alive()
    finally:
        bench.close()


def test_a_stuck_disk_delays_no_reader(bench: Bench) -> None:
    bench.connect()
    bench.disk.gate.clear()
    found = bench.read_all(list(OBJECTS)[:30])
    assert found == {key: OBJECTS[key] for key in found}
    assert len(found) == 30
    assert bench.disk.stuck >= 1
    bench.disk.gate.set()
    assert bench.settled()
    assert bench.read_all(list(OBJECTS)[30:50]) == {key: OBJECTS[key] for key in list(OBJECTS)[30:50]}
    wait_until(lambda: sum(thread.name == "small" for thread in threading.enumerate()) <= 1)


def test_an_object_that_is_not_written_yet_is_read_from_memory(bench: Bench) -> None:
    """By a read of another volume, while the disk is slow. An open that needs a file waits for it."""
    bench.connect()
    bench.disk.gate.clear()
    assert bench.read("001") == OBJECTS["001"]
    wait_until(lambda: bench.disk.stuck == 1)
    files: list[object] = []
    bench.read_through_cache.open(bench.source("001"), files.append)
    assert bench.read("001") == OBJECTS["001"]
    assert bench.read_through_cache.present_bytes(bench.source("001")) == len(OBJECTS["001"])
    assert files == []
    bench.disk.gate.set()
    wait_until(lambda: len(files) == 1)
    assert isinstance(files[0], OpenObject)
    assert files[0].backing_descriptor is not None
    files[0].close()
    assert len(bench.server.seen("GET")) == 1
    assert bench.settled()


@pytest.mark.parametrize("error", [CacheDiskFull("no space left"), ValueError("a defect")], ids=repr)
def test_an_object_that_cannot_be_written_is_served_and_then_released_from_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench.connect()
    writes: list[object] = []

    def refuse(*_: object, **more: object) -> NoReturn:
        writes.append(1)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(bench.chunks, "add_whole", refuse)
        assert bench.read("001") == OBJECTS["001"]
        assert bench.settled()
    assert writes == [1]
    assert bench.read_through_cache.present_bytes(bench.source("001")) == 0
    assert bench.read("001") == OBJECTS["001"]
    assert len(bench.server.seen("GET")) == 2


def test_an_object_that_is_added_during_its_lookup_is_not_fetched_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mount fetches it between the lookup in the cache and the entry in the pending opens."""
    bench.connect()
    find, overtaken = bench.chunks.find, list[bool]()

    def find_and_be_overtaken(*arguments: object) -> object:
        file = find(*arguments)  # type: ignore[arg-type]
        if not overtaken and file is None:
            overtaken.append(True)
            assert bench.read("001") == OBJECTS["001"]
            assert bench.settled()
        return file

    used = bench.chunks.used_bytes
    monkeypatch.setattr(bench.chunks, "find", find_and_be_overtaken)
    assert bench.read("001") == OBJECTS["001"]
    assert bench.settled()
    assert overtaken
    assert len(bench.server.seen("GET")) == 1
    assert bench.chunks.used_bytes - used == len(OBJECTS["001"])


def test_after_a_machine_crash_cached_objects_are_verified_and_not_fetched_again(
    tmp_path: Path, server: HostileS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrashRecovery, "begin", lambda self: None)  # no thread verifies it beforehand
    first = Bench(tmp_path, server)
    assert first.read("001") == OBJECTS["001"]
    assert first.settled()
    first.close()
    crash_the_machine(tmp_path)
    second = Bench(tmp_path, server)
    try:
        assert second.chunks.has_unverified_files
        second.connect()
        assert second.read("001") == OBJECTS["001"]
        assert server.seen("GET") == []
    finally:
        second.close()


def test_objects_are_fetched_by_fetch_threads_while_the_disk_refuses_writes(bench: Bench) -> None:
    """A write that fails must not delay the event loop."""
    bench.connect()
    bench.chunks.note_failure(CacheDiskFull("chunk.write: no space left"))
    assert not bench.chunks.accepts_writes
    assert bench.read("001") == OBJECTS["001"]
    assert bench.fallbacks == ["job"]
