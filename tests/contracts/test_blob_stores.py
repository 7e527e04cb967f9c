"""The contract of every blob store, run against directories, memory and a real S3 server."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from obstore.store import MemoryStore as ObstoreMemory

from csi_driver.model.dataset import Credentials, StoreOptions
from csi_driver.model.errors import InvalidParameter, RegistryUnavailable, UnsupportedUrl
from csi_driver.objects.blobs.blob_factory import open_blobs
from csi_driver.objects.blobs.blob_store import BlobStore
from csi_driver.objects.blobs.directory_blobs import DirectoryBlobs
from csi_driver.objects.blobs.object_blobs import ObjectBlobs
from csi_driver.objects.retrying import RetryPolicy
from csi_driver.objects.store_location import StoreLocation
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.hostile_s3 import HostileS3, LoseAnswer, Status
from tests.support.seaweedfs import seaweed, seaweed_bucket

__all__ = ["seaweed", "seaweed_bucket"]


class BlobStoreContract:
    """Inherit and provide ``blobs``, empty."""

    def test_a_missing_blob_is_none(self, blobs: BlobStore) -> None:
        assert blobs.get("volumes/none") is None

    def test_a_new_blob_is_read_back_with_its_tag(self, blobs: BlobStore) -> None:
        tag = blobs.put_if_absent("volumes/a.json", b"one")
        assert tag is not None
        assert blobs.get("volumes/a.json") == (b"one", tag)

    def test_an_existing_blob_is_not_put_again(self, blobs: BlobStore) -> None:
        blobs.put_if_absent("a", b"one")
        assert blobs.put_if_absent("a", b"two") is None
        found = blobs.get("a")
        assert found is not None
        assert found[0] == b"one"

    def test_a_blob_is_replaced_under_its_own_tag(self, blobs: BlobStore) -> None:
        tag = blobs.put_if_absent("a", b"one")
        assert tag is not None
        new_tag = blobs.put_if_match("a", b"two", tag)
        assert new_tag not in (None, tag)
        assert blobs.get("a") == (b"two", new_tag)

    def test_a_blob_is_not_replaced_under_an_old_tag(self, blobs: BlobStore) -> None:
        tag = blobs.put_if_absent("a", b"one")
        assert tag is not None
        assert blobs.put_if_match("a", b"two", tag)
        assert blobs.put_if_match("a", b"three", tag) is None
        found = blobs.get("a")
        assert found is not None
        assert found[0] == b"two"

    def test_a_blob_that_is_gone_is_not_replaced(self, blobs: BlobStore) -> None:
        tag = blobs.put_if_absent("a", b"one")
        assert tag is not None
        blobs.delete("a")
        assert blobs.put_if_match("a", b"two", tag) is None
        assert blobs.get("a") is None

    def test_deleting_twice_is_no_error(self, blobs: BlobStore) -> None:
        blobs.put_if_absent("a", b"one")
        blobs.delete("a")
        blobs.delete("a")
        assert blobs.get("a") is None

    def test_names_are_listed_by_prefix_and_sorted(self, blobs: BlobStore) -> None:
        for name in ("volumes/b", "volumes/a", "volumes-old/c", "vol", "manifests/x/y"):
            blobs.put_if_absent(name, b"")
        assert blobs.list("volumes/") == ["volumes/a", "volumes/b"]
        assert blobs.list("vol") == ["vol", "volumes-old/c", "volumes/a", "volumes/b"]
        assert blobs.list("none/") == []

    def test_a_large_file_is_stored_and_fetched(self, blobs: BlobStore, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(bytes(range(256)) * (80 << 10))  # 20 MiB: more than one part of an upload
        blobs.put_file("manifests/m", source)
        assert blobs.fetch_to_file("manifests/m", target)
        assert target.read_bytes() == source.read_bytes()
        assert stat.S_IMODE(target.stat().st_mode) == 0o600

    def test_a_missing_file_leaves_nothing_behind(self, blobs: BlobStore, tmp_path: Path) -> None:
        below = tmp_path / "below"
        below.mkdir()
        assert not blobs.fetch_to_file("manifests/none", below / "target")
        assert list(below.iterdir()) == []

    @pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a\nb", "a b", "-a"])
    def test_a_name_that_might_lead_outside_is_rejected(self, blobs: BlobStore, name: str) -> None:
        with pytest.raises(InvalidParameter):
            blobs.put_if_absent(name, b"")
        with pytest.raises(InvalidParameter):
            blobs.get(name)

    def test_one_of_many_concurrent_puts_wins(self, blobs: BlobStore) -> None:
        tags: list[str | None] = []

        def put(number: int) -> None:
            tags.append(blobs.put_if_absent("a", str(number).encode()))

        _at_once(put, 6)
        assert len(tags) == 6
        assert sum(tag is not None for tag in tags) == 1

    def test_no_concurrent_replacement_is_lost(self, blobs: BlobStore) -> None:
        blobs.put_if_absent("count", b"0")

        def add(_: int) -> None:
            for _turn in range(5):
                while True:
                    found = blobs.get("count")
                    assert found is not None
                    if blobs.put_if_match("count", str(int(found[0]) + 1).encode(), found[1]) is not None:
                        break

        _at_once(add, 3)
        found = blobs.get("count")
        assert found is not None
        assert found[0] == b"15"


def _at_once(action: object, count: int) -> None:
    threads = [threading.Thread(target=action, args=(number,)) for number in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class TestDirectory(BlobStoreContract):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> BlobStore:
        return open_blobs(str(tmp_path / "registry"), StoreOptions(), Credentials())

    def test_no_other_user_can_read_a_blob(self, blobs: BlobStore, tmp_path: Path) -> None:
        blobs.put_if_absent("volumes/a", b"x")
        assert stat.S_IMODE((tmp_path / "registry").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "registry/volumes/a").stat().st_mode) == 0o600

    def test_half_written_files_are_not_listed(self, blobs: BlobStore, tmp_path: Path) -> None:
        blobs.put_if_absent("a", b"x")
        (tmp_path / "registry/.0123456789abcdef").write_bytes(b"half")
        assert blobs.list("") == ["a"]

    def test_a_path_that_is_no_directory_is_an_unavailable_registry(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(RegistryUnavailable, match="file"):
            DirectoryBlobs(tmp_path / "file/below")


class TestObjectsInMemory(BlobStoreContract):
    @pytest.fixture
    def blobs(self) -> BlobStore:
        return ObjectBlobs(ObstoreMemory(), StoreLocation("memory://", "x"), "some/where/", RetryPolicy(5))


@pytest.mark.server
class TestObjectsOnSeaweedFS(BlobStoreContract):
    @pytest.fixture
    def blobs(self, seaweed: SeaweedFsServer, seaweed_bucket: str) -> BlobStore:
        keys = {"access_key_id": seaweed.access_key_id, "secret_access_key": seaweed.secret_access_key}
        options = StoreOptions(endpoint=seaweed.endpoint, deadline_s=20)
        return open_blobs(f"s3://{seaweed_bucket}/registry", options, Credentials(keys))


def _on(server: HostileS3) -> BlobStore:
    keys = Credentials({"access_key_id": "a", "secret_access_key": "b"})
    return open_blobs("s3://data/registry", StoreOptions(endpoint=server.endpoint, deadline_s=5), keys)


def test_a_put_is_recognised_after_its_response_was_lost() -> None:
    with HostileS3() as server:
        blobs = _on(server)
        blobs.check()
        sent = len(server.seen("PUT"))
        server.fail_next(LoseAnswer(kinds=("PUT",)))
        assert blobs.put_if_absent("a", b"mine") is not None
        assert len(server.seen("PUT")) == sent + 2


def test_the_check_of_conditions_survives_a_lost_response() -> None:
    with HostileS3() as server:
        server.fail_next(LoseAnswer(kinds=("PUT",)), Status(503, kinds=("PUT",)), LoseAnswer(kinds=("PUT",)))
        _on(server).check()


def test_a_registry_request_is_retried_on_503() -> None:
    with HostileS3({"registry/a": b"x"}) as server:
        server.fail_next(Status(503, "SlowDown"), Status(500))
        found = _on(server).get("a")
        assert found is not None
        assert found[0] == b"x"


def test_a_registry_without_permission_is_unavailable_with_the_reason() -> None:
    with HostileS3({"registry/a": b"x"}) as server:
        server.fail_next(Status(403, "AccessDenied"))
        with pytest.raises(RegistryUnavailable, match="access is denied"):
            _on(server).get("a")


def test_a_registry_of_an_unknown_scheme_is_rejected() -> None:
    with pytest.raises(UnsupportedUrl, match="ftp"):
        open_blobs("ftp://host/dir", StoreOptions(), Credentials())
