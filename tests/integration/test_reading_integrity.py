"""Objects are verified against the checksums that their store keeps, before they are complete in the cache."""

from __future__ import annotations

import base64
import hashlib
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import crc32c
import pytest
from awscrt.checksums import crc64nvme  # type: ignore[import-untyped]

from csi_driver.cache.chunk_store import ChunkStore
from csi_driver.model.chunk import CHUNK_BYTES
from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import ChecksumMismatch, HayloftError
from csi_driver.model.snapshot import ObjectVersion
from csi_driver.objects.store_factory import open_store
from csi_driver.reading.integrity import REFUSED_S
from csi_driver.reading.open_object import OpenObject
from csi_driver.reading.services import ObjectSource
from csi_driver.settings import ChunkStoreSettings, ReadingSettings
from tests.support.hostile_s3 import FlipBits, HostileS3, Status
from tests.support.own_event_loop import OwnLoopCache
from tests.support.random_bytes import random_bytes
from tests.unit.test_reading import read_whole, waited

SMALL = random_bytes(3, 110_000)
LARGE = random_bytes(4, 7 * CHUNK_BYTES + 4321)
ODD_TAG = hashlib.md5(b"something else", usedforsecurity=False).hexdigest()


def of(number: int, count_bytes: int) -> str:
    return base64.b64encode(number.to_bytes(count_bytes, "big")).decode()


WAYS = {
    "crc32c": lambda content: of(crc32c.crc32c(content), 4),
    "crc64nvme": lambda content: of(crc64nvme(content), 8),
    "crc32": lambda content: of(zlib.crc32(content), 4),
    "sha256": lambda content: base64.b64encode(hashlib.sha256(content).digest()).decode(),
}


class Bench:
    """A read-through cache over a server that damages responses on demand."""

    def __init__(self, directory: Path, server: HostileS3, verify: str = "auto") -> None:
        self.server = server
        self.chunks = ChunkStore(ChunkStoreSettings(directory=directory, limit_bytes=1 << 30, free_floor_bytes=0))
        self.read_through_cache = OwnLoopCache(self.chunks, ReadingSettings())
        options = StoreOptions(endpoint=server.endpoint, deadline_s=5, verify_checksums=verify)  # type: ignore[arg-type]
        keys = Credentials({"access_key_id": "testing", "secret_access_key": "testing"})
        self.store = open_store(DatasetUrl.parse("s3://data/"), options, keys)

    def source(self, key: str) -> ObjectSource:
        content = self.server.content(key)
        assert content is not None
        etag = self.server.etag(key)
        return ObjectSource(ObjectVersion("d", self.store.endpoint, "data", key, etag, len(content)), self.store)

    def open(self, key: str) -> OpenObject:
        result = waited(lambda answer: self.read_through_cache.open(self.source(key), answer))
        if isinstance(result, HayloftError):
            raise result
        assert isinstance(result, OpenObject)
        return result

    def read(self, key: str) -> bytes:
        opened = self.open(key)
        try:
            return read_whole(opened, len(self.server.content(key) or b""))
        finally:
            opened.close()

    def settles(self, key: str, *, complete: bool) -> bool:
        """Waits until every fetch has ended and the object is verified."""
        deadline = time.monotonic() + 10
        while (
            self.chunks.is_complete(self.source(key).version) != complete or not self.read_through_cache.table.is_empty
        ):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def close(self) -> None:
        self.read_through_cache.close()
        self.chunks.close()
        self.store.close()


@pytest.fixture
def server() -> Iterator[HostileS3]:
    with HostileS3({"small": SMALL, "other": SMALL[::-1], "large": LARGE}) as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, server: HostileS3) -> Iterator[Bench]:
    bench = Bench(tmp_path, server)
    yield bench
    bench.close()


@pytest.mark.promise("S59")
def test_a_small_object_that_was_damaged_in_transit_is_fetched_again(bench: Bench) -> None:
    bench.server.fail_next(FlipBits(77_777))
    assert bench.read("small") == SMALL
    assert bench.read_through_cache.integrity.counts.mismatches == 1
    assert len(bench.server.seen("GET")) == 2


def test_a_small_object_that_is_damaged_twice_is_an_error_and_is_not_cached(bench: Bench) -> None:
    assert bench.read("other") == SMALL[::-1]
    bench.server.fail_next(FlipBits(5), FlipBits(5))
    with pytest.raises(ChecksumMismatch, match="data/small"):
        bench.open("small")
    assert not bench.chunks.is_complete(bench.source("small").version)
    with pytest.raises(ChecksumMismatch):
        bench.open("small")
    assert len(bench.server.seen("GET")) == 3


def test_a_refused_object_is_requested_again_after_a_while(bench: Bench) -> None:
    assert bench.read("other") == SMALL[::-1]
    bench.server.fail_next(FlipBits(5), FlipBits(5))
    with pytest.raises(ChecksumMismatch):
        bench.open("small")
    bench.read_through_cache.integrity._clock = lambda: time.monotonic() + REFUSED_S
    assert bench.read("small") == SMALL


@pytest.mark.parametrize("way", WAYS)
def test_a_small_object_is_verified_by_the_checksum_of_its_response(bench: Bench, way: str) -> None:
    """And by nothing else: the ETag never matches."""
    bench.server.odd_etags["small"] = ODD_TAG
    bench.server.object_headers["small"] = {f"x-amz-checksum-{way}": WAYS[way](SMALL)}
    bench.server.fail_next(FlipBits(77_777))
    assert bench.read("small") == SMALL
    assert bench.chunks.is_complete(bench.source("small").version)
    counts = bench.read_through_cache.integrity.counts
    assert (counts.mismatches, counts.verified, counts.unverified) == (1, 1, 0)
    assert len(bench.server.requests) == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_small_object_that_never_matches_its_checksum_is_an_error_and_is_not_cached(bench: Bench, way: str) -> None:
    bench.server.object_headers["small"] = {f"x-amz-checksum-{way}": WAYS[way](SMALL[::-1])}
    with pytest.raises(ChecksumMismatch, match="data/small"):
        bench.open("small")
    assert not bench.chunks.is_complete(bench.source("small").version)
    requests = len(bench.server.requests)
    assert requests == 2
    with pytest.raises(ChecksumMismatch):
        bench.open("small")
    assert len(bench.server.requests) == requests, "it is not requested again for a while"


def test_two_fetches_that_differ_are_damage_whatever_the_etag_is(bench: Bench) -> None:
    bench.server.odd_etags["small"] = ODD_TAG
    bench.server.fail_next(FlipBits(5))
    with pytest.raises(ChecksumMismatch):
        bench.open("small")


@pytest.mark.promise("S61")
def test_an_etag_that_is_no_md5_makes_no_good_object_unreadable(bench: Bench) -> None:
    for number in range(6):
        key = f"odd-{number}"
        bench.server.put(key, SMALL + bytes([number]))
        bench.server.odd_etags[key] = f"{number:032x}"
        assert bench.read(key) == SMALL + bytes([number])
        assert bench.chunks.is_complete(bench.source(key).version)
    # Two fetches each until ETags are ignored, one from then on.
    assert len(bench.server.seen("GET")) == 3 * 2 + 3
    assert bench.read_through_cache.integrity.counts.mismatches == 0


@pytest.mark.promise("S61")
@pytest.mark.parametrize("encryption", ["aws:kms", "aws:kms:dsse"])
def test_objects_encrypted_with_a_key_of_their_own_are_readable_beside_others(bench: Bench, encryption: str) -> None:
    assert bench.read("other") == SMALL[::-1]
    bench.server.odd_etags["small"] = ODD_TAG
    bench.server.object_headers["small"] = {"x-amz-server-side-encryption": encryption}
    assert bench.read("small") == SMALL


def test_a_checksum_of_the_store_outweighs_the_etag(bench: Bench) -> None:
    assert bench.read("other") == SMALL[::-1]
    bench.server.odd_etags["small"] = ODD_TAG
    bench.server.object_headers["small"] = {"x-amz-checksum-crc64nvme": WAYS["crc64nvme"](SMALL)}
    assert bench.read("small") == SMALL


@pytest.mark.promise("S58")
@pytest.mark.parametrize("way", WAYS)
def test_a_large_object_is_complete_once_it_matches_its_checksum(bench: Bench, way: str) -> None:
    bench.server.object_headers["large"] = {f"x-amz-checksum-{way}": WAYS[way](LARGE)}
    assert bench.read("large") == LARGE
    assert bench.settles("large", complete=True)
    assert bench.read_through_cache.integrity.counts.verified == 1
    heads = bench.server.seen("HEAD")
    assert len(heads) == 1
    assert heads[0].headers["x-amz-checksum-mode"] == "ENABLED"
    assert heads[0].headers["if-match"] == f'"{bench.server.etag("large")}"'


@pytest.mark.promise("S58")
@pytest.mark.parametrize("way", WAYS)
def test_a_large_object_with_a_damaged_chunk_is_dropped_and_fetched_again(bench: Bench, way: str) -> None:
    bench.server.object_headers["large"] = {f"x-amz-checksum-{way}": WAYS[way](LARGE)}
    bench.server.fail_next(FlipBits(3))
    bench.read("large")
    assert bench.settles("large", complete=False)
    assert bench.chunks.present_bytes(bench.source("large").version) == 0
    assert bench.read("large") == LARGE
    assert bench.settles("large", complete=True)
    assert bench.read_through_cache.integrity.counts.mismatches == 1


@pytest.mark.promise("S60")
def test_a_large_object_that_never_matches_is_an_error_and_is_never_complete(bench: Bench) -> None:
    bench.server.object_headers["large"] = {"x-amz-checksum-crc32c": WAYS["crc32c"](LARGE[::-1])}
    for _ in range(2):
        bench.read("large")
        assert bench.settles("large", complete=False)
    with pytest.raises(ChecksumMismatch):
        bench.read("large")


def test_checksums_of_parts_are_no_checksum_of_the_object(bench: Bench) -> None:
    bench.server.object_headers["large"] = {
        "x-amz-checksum-crc32c": WAYS["crc32c"](b"whatever"),
        "x-amz-checksum-type": "COMPOSITE",
    }
    assert bench.read("large") == LARGE
    assert bench.settles("large", complete=True)
    assert bench.read_through_cache.integrity.counts.unverified == 1


@pytest.mark.promise("S212")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", ["small", "large"])
def test_checksums_of_parts_without_a_type_are_no_checksum_of_the_object(bench: Bench, way: str, key: str) -> None:
    """moto sends them so: neither a type nor the number of parts, but the ETag has it."""
    content = bench.server.content(key) or b""
    bench.server.odd_etags[key] = f"{bench.server.etag(key)}-3"
    bench.server.object_headers[key] = {f"x-amz-checksum-{way}": WAYS[way](b"the checksums of the parts")}
    assert bench.read(key) == content
    assert bench.settles(key, complete=True)
    assert bench.read_through_cache.integrity.counts.mismatches == 0
    assert len(bench.server.seen("GET")) == len({request.headers.get("range") for request in bench.server.seen("GET")})


def test_an_object_becomes_complete_although_its_checksum_cannot_be_read(bench: Bench) -> None:
    bench.server.fail_next(Status(403, "AccessDenied", kinds=("HEAD",)))
    assert bench.read("large") == LARGE
    assert bench.settles("large", complete=True)


def test_verifying_a_small_object_takes_no_further_request(bench: Bench) -> None:
    assert bench.read("small") == SMALL
    assert len(bench.server.requests) == 1


def test_with_full_a_large_object_is_verified_by_its_etag(tmp_path: Path, server: HostileS3) -> None:
    bench = Bench(tmp_path, server, "full")
    try:
        assert bench.read("small") == SMALL
        bench.server.fail_next(FlipBits(3))
        bench.read("large")
        assert bench.settles("large", complete=False)
        assert bench.read("large") == LARGE
        assert bench.settles("large", complete=True)
    finally:
        bench.close()


def test_with_off_nothing_is_requested_and_nothing_is_verified(tmp_path: Path, server: HostileS3) -> None:
    bench = Bench(tmp_path, server, "off")
    try:
        server.odd_etags["small"] = ODD_TAG
        assert bench.read("small") == SMALL
        assert bench.read("large") == LARGE
        assert bench.settles("large", complete=True)
        assert server.seen("HEAD") == []
    finally:
        bench.close()


def test_an_object_that_was_not_verified_before_a_restart_is_verified_after_it(
    tmp_path: Path, server: HostileS3
) -> None:
    first = Bench(tmp_path, server)
    first.read_through_cache.integrity.verify_and_publish = lambda source, file: None  # type: ignore[method-assign]  # killed just before
    first.read("large")
    assert first.settles("large", complete=False)
    first.close()
    second = Bench(tmp_path, server)
    try:
        opened = second.open("large")
        opened.close()
        assert second.settles("large", complete=True)
        assert len(server.seen("HEAD")) == 1
    finally:
        second.close()
