"""Small objects from a server into the cache: what goes smoothly, and what is done elsewhere."""

from __future__ import annotations

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
from csi_driver.objects.factory import open_store
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import ReadThroughCache
from csi_driver.reading.services import ObjectSource
from csi_driver.reading.small_object_fetcher import MOST_BYTES
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
from tests.support.tls import trusted_tls
from tests.unit.test_chunk_store import crash_the_machine
from tests.unit.test_write_back import WAIT_S, StuckDisk, read, waited

DRAW = random.Random(5)
OBJECTS = {f"{number:03}": DRAW.randbytes(DRAW.randint(1, 200_000)) for number in range(60)}
KEYS = Credentials({"access_key_id": "testing", "secret_access_key": "testing"})


class Bench:
    """A library over a real server, with connections that are open already, so that requests can begin at once."""

    def __init__(self, directory: Path, server: HostileS3, **options: float) -> None:
        self.server = server
        self.disk = StuckDisk()
        settings = ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings, self.disk)
        self.library = ReadThroughCache(self.chunks, ReadingSettings())
        self.elsewhere: list[str] = []
        demand = self.library.fetcher.demand
        self.library.fetcher.demand = lambda *job: (self.elsewhere.append("job"), demand(*job))[1]  # type: ignore[method-assign]
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
        """As many objects at a time leave as many connections."""
        self.server.fail_next(*[Slow(0.05)] * connections)
        self.read_all([f"{number:03}" for number in range(59, 59 - connections, -1)])
        assert self.settled()
        self.elsewhere.clear()
        self.server.requests.clear()

    def read_all(self, keys: list[str]) -> dict[str, bytes | HayloftError]:
        """All at a time, as a mount without opens reads them."""
        found: dict[str, bytes | HayloftError] = {}
        threads = [threading.Thread(target=lambda key=key: found.update({key: self.read(key)})) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        return found

    def read(self, key: str) -> bytes | HayloftError:
        opened = waited(lambda answer: self.library.open_to_read(self.source(key), answer))
        if isinstance(opened, HayloftError):
            return opened
        assert isinstance(opened, OpenObject)
        try:
            return read(opened, 0, len(self.server.content(key) or b""))
        finally:
            opened.close()

    def settled(self) -> bool:
        """Everything that came is in the cache."""
        deadline = time.monotonic() + WAIT_S
        while self.library._opening or self.library._arriving or self.library.small.busy:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return True

    def close(self) -> None:
        self.disk.gate.set()
        self.library.close()
        self.chunks.close()
        self.store.close()


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[HostileS3]:
    """Every test that has a server is made with both. Over TLS no MD5 is looked at, so that store keeps a checksum."""
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


def test_small_objects_come_whole_with_one_request_each_and_no_thread_that_waits(bench: Bench) -> None:
    bench.connect()
    library, keys = bench.library, list(OBJECTS)[:20]
    requests, origin_bytes = library.origin_requests, library.origin_bytes
    for key in keys:
        assert bench.read(key) == OBJECTS[key]
    assert bench.elsewhere == []
    assert len(bench.server.seen("GET")) == 20
    assert library.origin_requests - requests == 20
    assert library.origin_bytes - origin_bytes == sum(len(OBJECTS[key]) for key in keys)
    assert bench.settled()
    assert all(bench.chunks.is_complete(bench.source(key).version) for key in list(OBJECTS)[:20])
    assert bench.library.checking.tally.verified == 28


def test_warmups_see_that_readers_are_waited_for(bench: Bench) -> None:
    """They keep out of the way of what is under way, whichever way it takes."""
    bench.connect()
    assert bench.library.foreground().engaged == 0
    bench.server.fail_next(Slow(0.6))
    reader = threading.Thread(target=bench.read, args=("001",))
    reader.start()
    wait_until(lambda: bench.library.foreground().engaged == 1)
    assert bench.elsewhere == []
    reader.join(WAIT_S)
    assert bench.settled()
    assert bench.library.foreground().engaged == 0


def test_many_at_a_time_are_all_right(bench: Bench) -> None:
    assert bench.read_all(list(OBJECTS)) == OBJECTS
    assert bench.settled()
    assert bench.read_all(list(OBJECTS)) == OBJECTS


def test_many_more_are_under_way_than_there_are_threads(tmp_path: Path, server: HostileS3) -> None:
    """A store that is far away takes long for each: as many readers as there are have a request under way."""
    bench = Bench(tmp_path, server, request_timeout_s=5.0, deadline_s=20.0)
    try:
        bench.connect(connections=2)
        bench.server.fail_all(Hang(60))
        readers = [threading.Thread(target=bench.read, args=(key,), daemon=True) for key in list(OBJECTS)[:50]]
        for reader in readers:
            reader.start()
        wait_until(lambda: len({request.key for request in bench.server.seen("GET")}) == 50)
        assert bench.elsewhere == []
        bench.server.fail_all(None)
        for reader in readers:
            reader.join(WAIT_S)
        assert bench.settled()
    finally:
        bench.close()


def test_a_store_that_is_gone_is_waited_for_and_found_again(bench: Bench) -> None:
    """The addresses that were known lead nowhere for a moment."""
    bench.connect()
    bench.server.go_away()
    threading.Timer(0.5, bench.server.come_back).start()
    assert bench.read_all(["001", "002", "003"]) == {key: OBJECTS[key] for key in ("001", "002", "003")}
    assert bench.read("004") == OBJECTS["004"]


def test_who_opens_gets_the_file(bench: Bench) -> None:
    bench.connect()
    opened = waited(lambda answer: bench.library.open(bench.source("001"), answer))
    assert isinstance(opened, OpenObject)
    assert opened.backing_descriptor is not None
    assert bench.elsewhere == []
    opened.close()


def test_larger_objects_have_a_thread_each(bench: Bench) -> None:
    bench.connect()
    large = DRAW.randbytes(MOST_BYTES + 1)
    bench.server.put("large", large)
    assert bench.read("large") == large
    assert bench.elsewhere == ["job"]


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
def test_what_goes_wrong_once_is_a_pause(bench: Bench, fault: Fault) -> None:
    bench.connect()
    bench.server.fail_next(fault)
    assert bench.read_all(["001", "002", "003"]) == {key: OBJECTS[key] for key in ("001", "002", "003")}
    assert bench.read("004") == OBJECTS["004"]


def test_what_the_store_refuses_has_its_error(bench: Bench) -> None:
    bench.connect()
    bench.server.fail_all(Status(403, "AccessDenied"))
    assert isinstance(bench.read("001"), AccessDenied)
    bench.server.fail_all(None)
    source = bench.source("002")
    bench.server.put("002", b"another version")
    opened = waited(lambda answer: bench.library.open_to_read(source, answer))
    assert isinstance(opened, ObjectChanged)
    assert bench.read("003") == OBJECTS["003"]


def test_an_object_that_hangs_does_not_keep_the_others_waiting(tmp_path: Path, server: HostileS3) -> None:
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


def test_a_disk_that_is_stuck_keeps_no_reader_waiting(bench: Bench) -> None:
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


def test_who_reads_what_is_not_written_yet_gets_it_from_memory(bench: Bench) -> None:
    """Another volume of the same objects, while the disk takes its time. A file is waited for."""
    bench.connect()
    bench.disk.gate.clear()
    assert bench.read("001") == OBJECTS["001"]
    wait_until(lambda: bench.disk.stuck == 1)
    files: list[object] = []
    bench.library.open(bench.source("001"), files.append)
    assert bench.read("001") == OBJECTS["001"]
    assert bench.library.present_bytes(bench.source("001")) == len(OBJECTS["001"])
    assert files == []
    bench.disk.gate.set()
    wait_until(lambda: len(files) == 1)
    assert isinstance(files[0], OpenObject)
    assert files[0].backing_descriptor is not None
    files[0].close()
    assert len(bench.server.seen("GET")) == 1
    assert bench.settled()


@pytest.mark.parametrize("error", [CacheDiskFull("no space left"), ValueError("nobody foresaw this")], ids=repr)
def test_what_cannot_be_written_is_served_once_and_not_kept_in_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bench.connect()
    refused: list[object] = []

    def refuse(*_: object) -> NoReturn:
        refused.append(1)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(bench.chunks, "add_whole", refuse)
        assert bench.read("001") == OBJECTS["001"]
        assert bench.settled()
    assert refused == [1]
    assert bench.library.present_bytes(bench.source("001")) == 0
    assert bench.read("001") == OBJECTS["001"]
    assert len(bench.server.seen("GET")) == 2


def test_what_comes_while_it_is_looked_for_is_not_fetched_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another mount has the object between the look into the cache and the entry among those who wait."""
    bench.connect()
    find, met = bench.chunks.find, []

    def find_and_be_overtaken(*wanted: object) -> object:
        file = find(*wanted)  # type: ignore[arg-type]
        if not met and file is None:
            met.append(True)
            assert bench.read("001") == OBJECTS["001"]
            assert bench.settled()
        return file

    used = bench.chunks.used_bytes
    monkeypatch.setattr(bench.chunks, "find", find_and_be_overtaken)
    assert bench.read("001") == OBJECTS["001"]
    assert bench.settled()
    assert met
    assert len(bench.server.seen("GET")) == 1
    assert bench.chunks.used_bytes - used == len(OBJECTS["001"])


def test_after_a_crash_of_the_machine_what_is_in_the_cache_is_checked_and_not_fetched_again(
    tmp_path: Path, server: HostileS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrashRecovery, "begin", lambda self: None)  # nobody checks it beforehand
    first = Bench(tmp_path, server)
    assert first.read("001") == OBJECTS["001"]
    assert first.settled()
    first.close()
    crash_the_machine(tmp_path)
    second = Bench(tmp_path, server)
    try:
        assert second.chunks.is_in_doubt
        second.connect()
        assert second.read("001") == OBJECTS["001"]
        assert server.seen("GET") == []
    finally:
        second.close()


def test_what_the_cache_refuses_to_keep_has_a_thread(bench: Bench) -> None:
    """Whoever is refused by the disk must not hold up the thread that has everything."""
    bench.connect()
    bench.chunks.note_failure(CacheDiskFull("chunk.write: no space left"))
    assert not bench.chunks.accepts_writes
    assert bench.read("001") == OBJECTS["001"]
    assert bench.elsewhere == ["job"]
