"""Checksums that stores keep, read by each client."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import crc32c
import pytest

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import ObjectChanged, ObjectNotFound
from csi_driver.objects.checksums import ANY_SIZE, MD5_WORTHWHILE_BYTES, Checksum, ChecksumProvider, StoredChecksum
from csi_driver.objects.store_factory import open_store
from hayloft_lab.memory_store import MemoryStore
from tests.support.hostile_clouds import HostileGoogle
from tests.support.hostile_s3 import HostileS3, Status
from tests.support.secrets_of_stores import google_secret

CONTENT = b"some content" * 100
CRC = crc32c.crc32c(CONTENT).to_bytes(4, "big")
KEYS = Credentials({"access_key_id": "testing", "secret_access_key": "testing"})


@pytest.fixture
def server() -> Iterator[HostileS3]:
    with HostileS3({"dir/a b": CONTENT, "dir//odd": CONTENT}) as server:
        yield server


def opened(server: HostileS3, scheme: str = "s3", keys: Credentials = KEYS, **options: object) -> ChecksumProvider:
    store = open_store(
        DatasetUrl.parse(f"{scheme}://data/dir"),
        StoreOptions(endpoint=server.endpoint, deadline_s=5, **options),  # type: ignore[arg-type]
        keys,
    )
    assert isinstance(store, ChecksumProvider)
    return store


def set_checksum(server: HostileS3, name: str) -> None:
    for key in ("dir/a b", "dir//odd"):
        value = base64.b64encode(CRC).decode()
        server.object_headers[key] = {name: value if name.startswith("x-amz") else f"crc32c={value}"}


@pytest.mark.parametrize("backend", ["auto", "s3fs"])
@pytest.mark.parametrize("key", ["dir/a b", "dir//odd"])
def test_s3_returns_the_checksum_of_an_object(server: HostileS3, backend: str, key: str) -> None:
    set_checksum(server, "x-amz-checksum-crc32c")
    store = opened(server, backend=backend)
    assert store.checksum(key, if_match=server.etag(key)) == StoredChecksum(Checksum("crc32c", CRC), True)
    (request,) = server.requests
    assert (request.kind, request.headers["x-amz-checksum-mode"]) == ("HEAD", "ENABLED")


@pytest.mark.parametrize("backend", ["auto", "s3fs"])
def test_the_checksum_of_an_object_that_changed_or_was_deleted_is_an_error(server: HostileS3, backend: str) -> None:
    store = opened(server, backend=backend)
    with pytest.raises(ObjectChanged):
        store.checksum("dir/a b", if_match="0" * 32)
    with pytest.raises(ObjectNotFound):
        store.checksum("dir/none", if_match=None)


def test_a_transient_failure_of_a_checksum_request_is_retried(server: HostileS3) -> None:
    set_checksum(server, "x-amz-checksum-crc32c")
    server.fail_next(Status(503, "SlowDown", kinds=("HEAD",)))
    assert opened(server).checksum("dir/a b", if_match=None).checksum == Checksum("crc32c", CRC)


@pytest.mark.parametrize("anonymous", [True, False])
def test_google_returns_the_checksum_of_an_object(anonymous: bool) -> None:
    with HostileGoogle({"dir/a b": CONTENT}) as server:
        set_checksum(server, "x-goog-hash")
        keys = Credentials() if anonymous else Credentials(google_secret())
        store = opened(server, "gs", keys, anonymous=anonymous)
        found = store.checksum("dir/a b", if_match=server.etag("dir/a b"))
        assert found == StoredChecksum(Checksum("crc32c", CRC), False)
        (request,) = server.requests
        assert request.kind == "HEAD"
        assert ("authorization" in request.headers) == (not anonymous)
        with pytest.raises(ObjectChanged):
            store.checksum("dir/a b", if_match="1")
        with pytest.raises(ObjectNotFound):
            store.checksum("dir/none", if_match=None)


def test_an_md5_is_verified_for_small_objects_without_tls(server: HostileS3) -> None:
    assert opened(server).md5_up_to_bytes == MD5_WORTHWHILE_BYTES
    assert opened(server, verify_checksums="full").md5_up_to_bytes == ANY_SIZE
    secure = open_store(DatasetUrl.parse("s3://data/x"), StoreOptions(endpoint="https://localhost:1"), KEYS)
    assert isinstance(secure, ChecksumProvider)
    assert secure.md5_up_to_bytes == 0


def test_a_store_has_no_checksums_if_disabled_or_unsupported(server: HostileS3) -> None:
    options = StoreOptions(endpoint=server.endpoint, verify_checksums="off")
    assert not isinstance(open_store(DatasetUrl.parse("s3://data/dir"), options, KEYS), ChecksumProvider)
    assert not isinstance(open_store(DatasetUrl.parse("file:///tmp"), StoreOptions(), Credentials()), ChecksumProvider)
    assert not isinstance(MemoryStore(), ChecksumProvider)
