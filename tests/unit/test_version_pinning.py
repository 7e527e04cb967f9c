"""Which version of each object a snapshot pins, whatever the bucket has gone through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.catalog import manifest as reader
from csi_driver.catalog.builder import build_manifest
from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_format import COLUMNS
from csi_driver.catalog.manifest_notes import notes_of
from csi_driver.catalog.version_pinning import pin_versions, pinning_of
from csi_driver.model.dataset import Dataset, DatasetUrl
from csi_driver.model.errors import (
    HayloftError,
    ManifestInvalid,
    ObjectChanged,
    StoreProtocolError,
    TransientStoreError,
    VersionsNotPinned,
)
from csi_driver.model.snapshot import NO_VERSION, ObjectPage, VersionedKey, VersionPage, version_id_of
from csi_driver.objects.concurrency_limit import Limited
from csi_driver.objects.error_mapping import from_status
from csi_driver.objects.retrying import Retrying
from csi_driver.objects.s3.object_versions import page_query, parse_version_page
from csi_driver.objects.store import ObjectStore
from csi_driver.objects.store_location import StoreLocation
from csi_driver.objects.version_listing import ListedVersions
from hayloft_lab.memory_store import MemoryStore

DATASET = Dataset(DatasetUrl.parse("s3://bucket/data"))
LOCATION = StoreLocation("http://store", "bucket")


class VersionedStore(MemoryStore):
    """A bucket that lists all versions, newest first for each key, some on a page."""

    lists_versions = True

    def __init__(self, page_entries: int = 2) -> None:
        super().__init__()
        self._page_entries = page_entries
        self.versions: list[tuple[str, bytes, str]] = []
        """Key, content and version id, in the order of their writes."""
        self.failures: list[HayloftError] = []

    def write(self, key: str, content: bytes, *, versioned: bool = True) -> None:
        version_id = f"v{len(self.versions)}" if versioned else NO_VERSION
        if not versioned:
            self.versions = [one for one in self.versions if (one[0], one[2]) != (key, NO_VERSION)]
        self.versions.append((key, content, version_id))

    def current(self) -> ObjectPage:
        """What a listing shows: the last write of each key."""
        return _page({key: (key, content) for key, content, _ in self.versions}.values())

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        if self.failures:
            raise self.failures.pop(0)
        ordered = sorted(reversed(self.versions), key=lambda version: version[0])
        start = int(token or 0)
        stop = start + self._page_entries
        shown = ordered[start:stop]
        page = VersionPage(_page((key, content) for key, content, _ in shown), [version[2] for version in shown])
        return ListedVersions(page, str(stop) if stop < len(ordered) else None)


def _page(objects: Iterable[tuple[str, bytes]]) -> ObjectPage:
    pairs = list(objects)
    etags = [hashlib.md5(content, usedforsecurity=False).hexdigest() for _, content in pairs]
    return ObjectPage([key for key, _ in pairs], [len(content) for _, content in pairs], etags, [10**18] * len(pairs))


def manifest_of(store: VersionedStore, directory: Path) -> Manifest:
    return build_manifest([store.current()], DATASET, directory / "manifest.arrow")


def pinned_ids(manifest: Manifest) -> dict[str, str | None]:
    return {str(row.key): version_id_of(row.key) for row in manifest.tree.rows()}


def pin(manifest: Manifest, store: ObjectStore | None, directory: Path, *, required: bool = False) -> Manifest:
    return pin_versions(manifest, store, directory / "pinned.arrow", required=required)


writes = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=8)


@given(before=writes, after=writes, page_entries=st.integers(1, 5))
def test_the_bytes_of_the_manifest_are_pinned_whatever_was_written_since(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, int]],
    after: list[tuple[str, int]],
    page_entries: int,
) -> None:
    directory = tmp_path_factory.mktemp("pins")
    store = VersionedStore(page_entries)
    for name, content in before:
        store.write(f"data/{name}", bytes([content]))
    manifest = manifest_of(store, directory)
    expected = {key: content for key, content, _ in store.versions}
    for name, content in after:
        store.write(f"data/{name}", bytes([content]))
    pinned = pin(manifest, Retrying(Limited(store, 4), 5.0), directory, required=True)
    contents = {version_id: (key, content) for key, content, version_id in store.versions}
    assert {key: contents[version_id or ""] for key, version_id in pinned_ids(pinned).items()} == {
        key: (key, content) for key, content in expected.items()
    }
    assert pinning_of(pinned) == (len(expected), "")
    assert notes_of(pinned) == []


@pytest.fixture
def store() -> VersionedStore:
    store = VersionedStore()
    for key in ("data/a", "data/d//e", "data/sub/f"):
        store.write(key, key.encode())
    return store


def test_a_pinned_manifest_is_another_one_and_shows_the_same_files(store: VersionedStore, tmp_path: Path) -> None:
    manifest = manifest_of(store, tmp_path)
    pinned = pin(manifest, store, tmp_path)
    assert pinned.snapshot_id != manifest.snapshot_id
    assert [row.key for row in pinned.tree.rows()] == [row.key for row in manifest.tree.rows()]
    assert [row.etag for row in pinned.tree.rows()] == [row.etag for row in manifest.tree.rows()]
    assert all(isinstance(row.key, VersionedKey) for row in pinned.tree.rows()), "also of a renamed key"
    assert (pinned.url, pinned.total_bytes, pinned.created_ns) == (
        manifest.url,
        manifest.total_bytes,
        manifest.created_ns,
    )
    assert pin(manifest, store, tmp_path).snapshot_id == pinned.snapshot_id
    again = pin(pinned, store, tmp_path)  # of a volume that was made of a snapshot
    assert pinned_ids(again) == pinned_ids(pinned)


def test_a_version_of_hayloft_without_snapshots_refuses_a_pinned_manifest(
    store: VersionedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = pin(manifest_of(store, tmp_path), store, tmp_path)
    monkeypatch.setattr(reader, "COLUMNS_OF_FORMAT", {1: COLUMNS})
    with pytest.raises(ManifestInvalid, match="format version 2, this program reads 1"):
        Manifest.open(pinned.path)
    assert Manifest.open(pin(manifest_of(store, tmp_path), None, tmp_path).path), "one without versions is as before"


def test_objects_that_are_gone_are_an_error_that_names_one(store: VersionedStore, tmp_path: Path) -> None:
    manifest = manifest_of(store, tmp_path)
    store.versions = store.versions[2:]
    with pytest.raises(ObjectChanged, match=r"data/a: .*\(and those of 1 other objects\)"):
        pin(manifest, store, tmp_path)
    assert not (tmp_path / "pinned.arrow").exists()


def test_objects_from_before_versioning_do_not_count_as_pinned(tmp_path: Path) -> None:
    store = VersionedStore()
    store.write("data/old", b"old", versioned=False)
    store.write("data/new", b"new")
    manifest = manifest_of(store, tmp_path)
    pinned = pin(manifest, store, tmp_path)
    assert pinned_ids(pinned) == {"data/new": "v1", "data/old": NO_VERSION}
    assert pinning_of(pinned)[0] == 1
    assert "1 objects of this snapshot" in notes_of(pinned)[0]
    with pytest.raises(VersionsNotPinned, match="1 of 2 objects"):
        pin(manifest, store, tmp_path, required=True)


@pytest.mark.parametrize("store", [MemoryStore({"data/a": b"1"}), None], ids=["no versions", "not asked"])
def test_a_store_without_versions_pins_nothing(store: MemoryStore | None, tmp_path: Path) -> None:
    manifest = build_manifest((store or MemoryStore({"data/a": b"1"})).list("data/"), DATASET, tmp_path / "m.arrow")
    pinned = pin(manifest, store, tmp_path)
    assert pinning_of(pinned)[0] == 0
    assert pinned_ids(pinned) == {"data/a": None}
    assert "not pinned by a version" in notes_of(pinned)[0]
    with pytest.raises(VersionsNotPinned):
        pin(manifest, store, tmp_path, required=True)


def test_a_store_that_fails_is_no_store_without_versions(store: VersionedStore, tmp_path: Path) -> None:
    manifest = manifest_of(store, tmp_path)
    store.failures = [TransientStoreError("HTTP 503")]
    assert pinning_of(pin(manifest, Retrying(Limited(store, 4), 5.0), tmp_path)) == (3, "")
    store.failures = [StoreProtocolError("broken")]
    with pytest.raises(StoreProtocolError):
        pin(manifest, store, tmp_path)
    store.failures = [VersionsNotPinned("HTTP 501 NotImplemented")]
    assert pinning_of(pin(manifest, store, tmp_path)) == (0, "HTTP 501 NotImplemented")


def test_a_listing_of_versions_without_an_end_is_an_error(store: VersionedStore, tmp_path: Path) -> None:
    class Endless(VersionedStore):
        def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
            return ListedVersions(super().list_versions_page(prefix, None).page, "again")

    with pytest.raises(StoreProtocolError, match="no end"):
        pin(manifest_of(store, tmp_path), Endless(), tmp_path)


# -- the XML of S3 ----------------------------------------------------------------------------------------------------


def document(entries: str, more: str = "<IsTruncated>false</IsTruncated>", name: str = "ListVersionsResult") -> bytes:
    return f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{more}{entries}</{name}>'.encode()


def version(key: str, version_id: str = "v1") -> str:
    return (
        f"<Version><Key>{key}</Key><VersionId>{version_id}</VersionId><IsLatest>true</IsLatest><Size>7</Size>"
        "<ETag>&#34;abc&#34;</ETag><LastModified>2026-01-02T03:04:05Z</LastModified></Version>"
    )


def test_versions_are_read_and_deletion_marks_are_not() -> None:
    marker = "<DeleteMarker><Key>data/a</Key><VersionId>v2</VersionId></DeleteMarker>"
    more = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
    entries = marker + version("data/a") + version("data/b+c%2Bd", "null") + version("data/x", "x" * 1025)
    page, token = parse_version_page(document(entries, more), LOCATION)
    assert page.objects.keys == ["data/a", "data/b c+d", "data/x"]
    assert (page.objects.etags, page.objects.sizes_bytes) == (["abc"] * 3, [7] * 3)
    assert page.version_ids == ["v1", NO_VERSION, NO_VERSION]
    assert token is None


def test_the_next_page_is_named_by_both_markers() -> None:
    more = (
        "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextKeyMarker>data/a+b</NextKeyMarker>"
        "<NextVersionIdMarker>v7</NextVersionIdMarker>"
    )
    _, token = parse_version_page(document(version("data/a+b"), more), LOCATION)
    query = page_query("data/", token)
    assert (query["key-marker"], query["version-id-marker"]) == ("data/a b", "v7")
    assert page_query("data/", json.dumps(["data/a", ""])).get("version-id-marker") is None
    with pytest.raises(StoreProtocolError, match="without a marker"):
        parse_version_page(document("", "<IsTruncated>true</IsTruncated>"), LOCATION)


def test_the_answer_to_another_request_is_no_listing_of_versions() -> None:
    with pytest.raises(VersionsNotPinned):
        parse_version_page(document("", name="ListBucketResult"), LOCATION)
    with pytest.raises(StoreProtocolError, match="no valid XML"):
        parse_version_page(b"<ListVersionsResult>", LOCATION)


def test_errors_of_versions_name_object_version_and_permission() -> None:
    key = VersionedKey("data/a", "v1")
    assert "data/a" in str(from_status(LOCATION, key, 404, "NoSuchVersion"))
    assert "no longer has its version v1" in str(from_status(LOCATION, key, 404, "NoSuchVersion"))
    assert "s3:GetObjectVersion" in str(from_status(LOCATION, key, 403, "AccessDenied"))
    assert isinstance(from_status(LOCATION, None, 501, "NotImplemented"), StoreProtocolError)
