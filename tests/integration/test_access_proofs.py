"""Cached bytes are shared by proof: a victim and an attacker in one cache, over servers that check signatures."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.cache.object_file import ObjectFile
from csi_driver.cache.proof_attribute import NAME
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import AccessDenied, CredentialsRejected, EndpointUnreachable, HayloftError, ObjectChanged
from csi_driver.model.snapshot import ObjectInfo, ObjectVersion
from csi_driver.objects.credentials import access_domain, credential_id
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.access import Access, Credential
from csi_driver.reading.fair_shares import Share
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.read_through_cache import Presence
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.daemons import wait_until
from tests.support.guarded_s3 import GuardedS3
from tests.support.hostile_s3 import Slow
from tests.support.own_event_loop import OwnLoopCache

SECRETS = {"VICTIM": "victims-secret", "TEAMMATE": "another-secret", "ATTACKER": "attackers-secret"}
OBJECTS = {
    "small": random.Random(1).randbytes(110_000),
    "medium": random.Random(2).randbytes(3 * CHUNK_BYTES),
    "large": random.Random(3).randbytes(7 * CHUNK_BYTES + 123),
}
"""Fetched by the event loop, by a fetch thread as a whole, and chunk by chunk."""

URL = DatasetUrl.parse("s3://data/")
DAY_S = 86_400.0


class Reader:
    """The reads of one mount."""

    def __init__(self, node: Node, server: GuardedS3, key_id: str, secret: str, **options: object) -> None:
        values = {"access_key_id": key_id, "secret_access_key": secret}
        self.node, self.server, self.key_id = node, server, key_id
        given = {"endpoint": server.endpoint, "request_timeout_s": 5.0, "deadline_s": 1.0, **options}
        self.options = StoreOptions(**given)  # type: ignore[arg-type]
        credentials = Credentials(values)
        self.store = open_store(URL, self.options, credentials)
        node.stores.append(self.store)
        self.domain = access_domain(URL, self.options, credentials)
        own = credential_id(URL, self.options, credentials, node.chunks.credential_key)
        self.access = Access(Credential(own, own, DAY_S), len(OBJECTS), clock=lambda: node.now_s)

    def source(self, key: str) -> ObjectSource:
        version = ObjectVersion(self.domain, URL.bucket, URL.bucket, key, self.server.etag(key), len(OBJECTS[key]))
        return ObjectSource(version, self.store, 0, Share(), self.access, list(OBJECTS).index(key))

    def begin_open(self, key: str) -> list[OpenObject | HayloftError]:
        """Where the result will be."""
        return self.node.begin_open(self.source(key))

    def open(self, key: str) -> OpenObject:
        results = self.begin_open(key)
        assert self.node.answered.acquire(timeout=30)
        if isinstance(results[0], HayloftError):
            raise results[0]
        return results[0]

    def read(self, key: str, chunks: range | None = None) -> bytes:
        """Of the complete object, or of some of its chunks."""
        opened = self.open(key)
        try:
            chunks = chunks or range(-(-len(OBJECTS[key]) // CHUNK_BYTES))
            return b"".join(self.read_open(opened, chunk) for chunk in chunks)
        finally:
            opened.close()

    @staticmethod
    def read_open(opened: OpenObject, chunk: int) -> bytes:
        answers: list[bytes | HayloftError] = []
        done = threading.Event()

        def answer(data: list[memoryview] | HayloftError) -> None:
            answers.append(data if isinstance(data, HayloftError) else b"".join(data))
            done.set()

        opened.read(chunk * CHUNK_BYTES, CHUNK_BYTES, answer)
        assert done.wait(30)
        if isinstance(answers[0], HayloftError):
            raise answers[0]
        return answers[0]

    def asked(self) -> int:
        """Requests of this key so far."""
        return len(self.server.asked_by(self.key_id))


class Node:
    """The cache of a daemon, which can be restarted. Its clock is that of the proofs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_s = 1_000_000_000.0
        self.answered = threading.Semaphore(0)
        self.stores: list[ObjectStore] = []
        self.start()

    def start(self) -> None:
        settings = ChunkStoreSettings(directory=self.directory, limit_bytes=1 << 30, free_floor_bytes=0)
        self.chunks = ChunkStore(settings)
        self.cache = OwnLoopCache(self.chunks, ReadingSettings())

    def begin_open(self, source: ObjectSource) -> list[OpenObject | HayloftError]:
        """Where the result will be once ``answered`` was released."""
        results: list[OpenObject | HayloftError] = []

        def opened(result: OpenObject | HayloftError) -> None:
            results.append(result)
            self.answered.release()

        self.cache.open(source, opened)
        return results

    def stop(self) -> None:
        self.cache.close()
        self.chunks.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "cache").mkdir()
    node = Node(tmp_path / "cache")
    yield node
    node.stop()
    for store in node.stores:
        store.close()


@pytest.fixture
def server() -> Iterator[GuardedS3]:
    with GuardedS3(OBJECTS, SECRETS) as server:
        yield server


@pytest.fixture
def victim(node: Node, server: GuardedS3) -> Reader:
    return Reader(node, server, "VICTIM", SECRETS["VICTIM"])


@pytest.mark.promise("S141")
@pytest.mark.parametrize("key", OBJECTS)
@pytest.mark.parametrize(
    ("key_id", "secret", "error"),
    [("VICTIM", "forged", CredentialsRejected), ("ATTACKER", SECRETS["ATTACKER"], AccessDenied)],
)
def test_cached_bytes_are_not_for_a_credential_that_the_store_refuses(
    node: Node, server: GuardedS3, victim: Reader, key: str, key_id: str, secret: str, error: type[HayloftError]
) -> None:
    assert victim.read(key) == OBJECTS[key]
    server.readers.remove("ATTACKER")
    attacker = Reader(node, server, key_id, secret)
    assert attacker.domain == victim.domain
    before = len(server.seen("GET"))
    with pytest.raises(error):
        attacker.read(key)
    assert len(server.seen("GET")) == before + 1, "the store decides"
    assert node.cache.present_bytes(attacker.source(key)) == 0
    assert node.cache.present_bytes(victim.source(key)) == len(OBJECTS[key])
    wait_until(lambda: node.cache.presence(attacker.source(key)) is not Presence.MISSING)  # its last write
    assert node.cache.presence(attacker.source(key)) is Presence.UNPROVEN
    assert victim.read(key) == OBJECTS[key]


@pytest.mark.promise("S141")
def test_a_partly_cached_object_is_not_for_a_credential_that_the_store_refuses(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    assert victim.read("large", range(2)) == OBJECTS["large"][: 2 * CHUNK_BYTES]
    attacker = Reader(node, server, "VICTIM", "forged")
    with pytest.raises(CredentialsRejected):
        attacker.read("large", range(1))
    opened = victim.open("large")
    with pytest.raises(CredentialsRejected):  # a reader that is open does not help either
        attacker.read("large", range(1))
    assert victim.read_open(opened, 1) == OBJECTS["large"][CHUNK_BYTES : 2 * CHUNK_BYTES]
    opened.close()
    assert node.cache.present_bytes(attacker.source("large")) == 0


@pytest.mark.promise("S141")
def test_an_open_before_the_first_byte_was_cached_does_not_read_what_others_fetch(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    attacker = Reader(node, server, "VICTIM", "forged")
    opened = attacker.open("large")  # of a large object nothing is fetched at the open
    assert victim.read("large") == OBJECTS["large"]
    with pytest.raises(CredentialsRejected):
        attacker.read_open(opened, 0)
    opened.close()


@pytest.mark.promise("S141")
@pytest.mark.parametrize("way", ["open", "reopen"])
def test_an_open_is_not_given_a_file_that_another_credential_completes_meanwhile(
    node: Node, server: GuardedS3, victim: Reader, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacker = Reader(node, server, "VICTIM", "forged")
    step = {"open": "_fetch", "reopen": "_cached_file"}[way]
    find = getattr(node.cache, step)
    found = threading.Event()

    def find_first(source: ObjectSource, *rest: bool) -> ObjectFile | None:
        """The attacker's open finds the file without bytes, and goes on when the victim has all of them."""
        file: ObjectFile | None = find(source, *rest)
        if source.access is attacker.access:
            assert file is not None
            assert file.present_bytes() == 0
            found.set()
            wait_until(lambda: file.complete)
        return file

    monkeypatch.setattr(node.cache, step, find_first)
    results: list[OpenObject | HayloftError] = []

    def begin() -> None:
        if way == "open":
            node.cache.open(attacker.source("large"), results.append)
        else:
            results.append(node.cache.reopen(attacker.source("large")))

    thread = threading.Thread(target=begin)
    thread.start()
    assert found.wait(30)
    assert victim.read("large") == OBJECTS["large"]
    thread.join(30)
    wait_until(lambda: bool(results))
    (opened,) = results
    assert isinstance(opened, OpenObject)
    assert opened.backing_descriptor is None
    with pytest.raises(CredentialsRejected):
        attacker.read_open(opened, 0)
    opened.close()


@pytest.mark.promise("S142")
@pytest.mark.parametrize("key", OBJECTS)
def test_another_credential_reads_cached_bytes_after_one_request_for_one_byte(
    node: Node, server: GuardedS3, victim: Reader, key: str
) -> None:
    victim.read(key)
    teammate = Reader(node, server, "TEAMMATE", SECRETS["TEAMMATE"])
    for _ in range(3):
        assert teammate.read(key) == OBJECTS[key]
    (request,) = server.asked_by("TEAMMATE")
    assert request.headers["range"] == "bytes=0-0"
    assert request.headers["if-match"] == f'"{server.etag(key)}"'
    wait_until(lambda: node.cache.presence(teammate.source(key)) is Presence.READABLE)


@pytest.mark.promise("S142")
def test_a_proof_survives_the_daemon_and_serves_other_mounts_of_the_credential(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    for key in OBJECTS:
        victim.read(key)
        Reader(node, server, "TEAMMATE", SECRETS["TEAMMATE"]).read(key)
    before = len(server.seen("GET"))
    node.stop()
    node.start()
    for reader in (Reader(node, server, name, SECRETS[name]) for name in ("VICTIM", "TEAMMATE")):
        assert all(reader.read(key) == content for key, content in OBJECTS.items())
    assert len(server.seen("GET")) == before


@pytest.mark.promise("S143")
@pytest.mark.parametrize("key", OBJECTS)
def test_a_permission_that_was_revoked_ends_with_the_age_of_its_proof(
    node: Node, server: GuardedS3, victim: Reader, key: str
) -> None:
    victim.read(key)
    server.readers.remove("VICTIM")
    node.now_s += DAY_S * 0.99
    assert victim.read(key) == OBJECTS[key]
    node.now_s += DAY_S * 0.02
    with pytest.raises(AccessDenied):
        victim.read(key)
    server.readers.add("VICTIM")
    assert victim.read(key) == OBJECTS[key]


@pytest.mark.promise("S143")
def test_an_object_that_changed_is_stale_once_its_proof_has_expired(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    source = victim.source("small")
    victim.read("small")
    server.put("small", bytes(110_000))
    node.now_s += DAY_S + 1
    results = node.begin_open(source)
    assert node.answered.acquire(timeout=30)
    assert isinstance(results[0], ObjectChanged)


@pytest.mark.promise("S144")
def test_cached_bytes_are_readable_without_the_store_by_a_credential_that_had_read_them(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    for key in OBJECTS:
        victim.read(key)
    server.go_away()
    try:
        node.now_s += 10 * DAY_S
        assert all(victim.read(key) == content for key, content in OBJECTS.items())
        stranger = Reader(node, server, "TEAMMATE", SECRETS["TEAMMATE"])
        with pytest.raises(EndpointUnreachable):
            stranger.read("small")
    finally:
        server.come_back()
    server.readers.remove("VICTIM")
    node.cache.proofs._unreachable_until_s.clear()  # it is asked again after ten seconds
    with pytest.raises(AccessDenied):
        victim.read("small")


@pytest.mark.promise("S141")
@pytest.mark.parametrize("key", ["small", "medium"])
@pytest.mark.parametrize("first", ["victim", "attacker"])
def test_no_credential_gets_the_bytes_or_the_error_of_another_credential_in_flight(
    node: Node, server: GuardedS3, victim: Reader, key: str, first: str
) -> None:
    attacker = Reader(node, server, "VICTIM", "forged")
    server.fail_next(Slow(0.3, 64 << 10))  # for the first request
    readers = [victim, attacker] if first == "victim" else [attacker, victim]
    results = [readers[0].begin_open(key)]
    wait_until(lambda: bool(server.seen("GET")))
    results.append(readers[1].begin_open(key))
    for _ in results:
        assert node.answered.acquire(timeout=30)
    by_reader = dict(zip(readers, results, strict=True))
    opened, refused = by_reader[victim][0], by_reader[attacker][0]
    assert isinstance(opened, OpenObject)
    assert victim.read_open(opened, 0) == OBJECTS[key][:CHUNK_BYTES]
    opened.close()
    # A slow response is one that the server has not refused: only the bytes of its own request are the attacker's.
    assert isinstance(refused, CredentialsRejected) or first == "attacker"
    if isinstance(refused, OpenObject):
        refused.close()


@pytest.mark.promise("S141")
@pytest.mark.parametrize("key", OBJECTS)
def test_an_open_of_an_earlier_daemon_is_served_from_the_cache_only_where_it_was_proven(
    node: Node, server: GuardedS3, victim: Reader, key: str
) -> None:
    victim.read(key)
    # The last chunk is read before the file is complete: the store is asked for the object's checksum in between.
    wait_until(lambda: node.cache.presence(victim.source(key)) is Presence.READABLE)
    attacker = Reader(node, server, "VICTIM", "forged")
    reopened = node.cache.reopen(attacker.source(key))
    assert reopened.backing_descriptor is None
    with pytest.raises(CredentialsRejected):
        attacker.read_open(reopened, 0)
    reopened.close()
    server.go_away()
    node.now_s += 10 * DAY_S
    reopened = node.cache.reopen(victim.source(key))
    assert reopened.backing_descriptor is not None
    assert victim.read_open(reopened, 0) == OBJECTS[key][:CHUNK_BYTES]
    reopened.close()
    server.come_back()


@pytest.mark.promise("S145")
def test_an_object_without_an_etag_is_another_one_when_its_time_is_another(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    version = victim.source("small").version
    times = (10**18, 10**18 + 1)
    for etag, digests in ((None, 2), ("", 2), ("W/weak", 2), ("strong", 1)):
        assert len({replace(version, etag=etag, mtime_ns=at).digest(CHUNK_BYTES) for at in times}) == digests


@pytest.mark.promise("S145")
@pytest.mark.parametrize("etag", [None, "W/weak"])
def test_without_a_strong_etag_size_and_time_are_the_version_that_is_proven(
    node: Node, server: GuardedS3, victim: Reader, etag: str | None
) -> None:
    def source(reader: Reader, mtime_ns: int) -> ObjectSource:
        plain = reader.source("small")
        return plain._replace(version=replace(plain.version, etag=etag, mtime_ns=mtime_ns))

    class Stated:
        """The victim's store, with a time and an ETag that the test decides."""

        def __init__(self, mtime_ns: int) -> None:
            self.mtime_ns = mtime_ns

        def stat(self, key: str) -> ObjectInfo:
            return ObjectInfo(key, len(OBJECTS[key]), etag, self.mtime_ns)

    file = node.chunks.add_whole(source(victim, 5 * 10**9).version, [memoryview(OBJECTS["small"])])
    for stated_ns, error in ((5 * 10**9 + 1000, None), (6 * 10**9, ObjectChanged)):
        reader = Reader(node, server, "VICTIM", SECRETS["VICTIM"])
        own = str(stated_ns).encode().ljust(16)
        reader.access = Access(Credential(own, own, DAY_S), len(OBJECTS), clock=lambda: node.now_s)
        asked = source(reader, 5 * 10**9)._replace(store=Stated(stated_ns))  # type: ignore[arg-type]
        results = node.begin_open(asked)
        assert node.answered.acquire(timeout=30)
        if error is None:
            assert isinstance(results[0], OpenObject)
            results[0].close()
        else:
            assert isinstance(results[0], error)
    file.release()


@pytest.mark.promise("S141")
def test_a_process_without_privileges_does_not_see_the_proofs(node: Node, server: GuardedS3, victim: Reader) -> None:
    victim.read("small")
    (path,) = (node.directory / "objects").glob("??/*")
    with path.open("rb") as file:
        assert [_attributes_shown_to(user, file.fileno()) for user in (0, 65534)] == [f"['{NAME}']", "[]"]


@pytest.mark.promise("S18")
def test_two_credentials_that_fetch_one_object_at_once_store_it_once(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    teammate = Reader(node, server, "TEAMMATE", SECRETS["TEAMMATE"])
    for key in ("small", "medium"):
        results = [reader.begin_open(key) for reader in (victim, teammate, victim, teammate)]
        for _ in results:
            assert node.answered.acquire(timeout=30)
        for (opened,) in results:
            assert isinstance(opened, OpenObject)
            assert victim.read_open(opened, 0) == OBJECTS[key][:CHUNK_BYTES]
            opened.close()
    assert node.chunks.used_bytes == len(OBJECTS["small"]) + len(OBJECTS["medium"])
    assert max(victim.asked(), teammate.asked()) <= 2


@pytest.mark.promise("S18")
def test_an_open_waits_for_the_fetch_of_its_credential_although_another_one_has_cached_the_object(
    node: Node, server: GuardedS3, victim: Reader
) -> None:
    teammate = Reader(node, server, "TEAMMATE", SECRETS["TEAMMATE"])
    server.fail_next(Slow(0.5, 64 << 10))
    results = [teammate.begin_open("small")]
    wait_until(lambda: bool(server.seen("GET")))
    source = victim.source("small")
    node.chunks.add_whole(source.version, [memoryview(OBJECTS["small"])]).release()
    results.append(teammate.begin_open("small"))
    for _ in results:
        assert node.answered.acquire(timeout=30)
    for (opened,) in results:
        assert isinstance(opened, OpenObject)
        opened.close()
    assert teammate.asked() == 1


@pytest.mark.promise("S140")
@pytest.mark.parametrize("key", OBJECTS)
@pytest.mark.parametrize("difference", ["endpoint", "addressing", "verification"])
def test_bytes_of_a_connection_that_deserves_other_trust_are_no_hit(
    node: Node, server: GuardedS3, victim: Reader, key: str, difference: str
) -> None:
    forged = {name: bytes(len(content)) for name, content in OBJECTS.items()}
    with GuardedS3(forged, SECRETS) as other:
        other.odd_etags = {name: server.etag(name) for name in OBJECTS}
        options: dict[str, object] = {"verify_checksums": "off"}
        endpoint = other.endpoint
        if difference == "verification":
            server.put(key, forged[key])  # damaged under the right ETag
            server.odd_etags = other.odd_etags
            endpoint = server.endpoint
        attacker = Reader(node, server, "VICTIM", SECRETS["VICTIM"], endpoint=endpoint, **options)
        assert attacker.read(key) == forged[key]
        if difference == "addressing":
            attacker.options = replace(attacker.options, addressing_style="virtual")
            assert access_domain(URL, attacker.options, Credentials()) != attacker.domain
        server.put(key, OBJECTS[key])
        server.odd_etags = {}
        assert victim.read(key) == OBJECTS[key]


@pytest.mark.promise("S142")
def test_a_reader_that_goes_through_cached_files_in_order_seldom_waits_for_the_store(
    node: Node, server: GuardedS3, tmp_path: Path
) -> None:
    count = 200
    objects = {f"{number:04}": random.Random(number).randbytes(2000) for number in range(count)}
    for key, content in objects.items():
        server.put(key, content)

    def source_of(reader: Reader, row: int) -> ObjectSource:
        key = f"{row:04}"
        etag = server.etag(key)
        version = ObjectVersion(reader.domain, URL.bucket, URL.bucket, key, etag, len(objects[key]))
        return ObjectSource(version, reader.store, 0, Share(), reader.access, row)

    def read(reader: Reader, row: int) -> bytes:
        results = node.begin_open(source_of(reader, row))
        assert node.answered.acquire(timeout=30)
        assert isinstance(results[0], OpenObject)
        content = reader.read_open(results[0], 0)
        results[0].close()
        return content

    readers = {name: Reader(node, server, name, SECRETS[name]) for name in ("VICTIM", "TEAMMATE")}
    for reader in readers.values():
        reader.access = Access(reader.access.credential, count, partial(source_of, reader))
        assert all(read(reader, row) == objects[f"{row:04}"] for row in range(count))
    requests = server.asked_by("TEAMMATE")
    assert len(requests) == len({request.key for request in requests}) == count
    assert all(request.headers["range"] == "bytes=0-0" for request in requests)


def _attributes_shown_to(user: int, descriptor: int) -> str:
    """In a process without another program, since other users may not be allowed to run this Python."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads: the child needs none
        pid = os.fork()
    if not pid:
        try:
            os.setuid(user)
            os.write(writing, str(os.listxattr(descriptor)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode()
