"""The registry: conditional puts of records, manifests, and damaged or foreign blobs."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from csi_driver.model.errors import (
    ManifestInvalid,
    MissingParameter,
    RegistryUnavailable,
    UnsupportedUrl,
    VolumeConflict,
)
from csi_driver.settings import RegistrySettings
from csi_driver.volumes.records import VolumeRecord
from csi_driver.volumes.registry import BlobRegistry, open_registry
from tests.support.memory_blobs import MemoryBlobs

KEY = "volumes/vol-1.json"
SNAPSHOT = "0123456789abcdef"


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def registry(blobs: MemoryBlobs) -> BlobRegistry:
    return BlobRegistry(blobs, "memory://registry")


def record(volume_id: str = "vol-1", **changes: Any) -> VolumeRecord:
    values: dict[str, Any] = {
        "volume_id": volume_id,
        "name": "pvc-1",
        "dynamic": True,
        "parameters": {"url": "s3://bucket/train/"},
        "snapshot_id": SNAPSHOT,
        "required_bytes": 10,
        "total_bytes": 100,
        "file_count": 3,
        "created": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    }
    return VolumeRecord(**{**values, **changes})


def test_a_stored_record_is_read_unchanged(registry: BlobRegistry) -> None:
    assert registry.get("vol-1") is None
    assert registry.create(record()) == record()
    assert registry.get("vol-1") == record()
    assert list(registry.volumes.all()) == [record()]
    assert registry.references() == {SNAPSHOT}


def test_the_stored_document_is_json_with_its_format(registry: BlobRegistry, blobs: MemoryBlobs) -> None:
    registry.create(record())
    blob = blobs.get(KEY)
    assert blob is not None
    assert json.loads(blob[0])["format"] == 1


def test_creating_an_equal_volume_again_returns_the_first_snapshot(registry: BlobRegistry) -> None:
    registry.create(record())
    later = record(snapshot_id="f" * 16, total_bytes=200, created=datetime(2027, 1, 1, tzinfo=UTC))
    assert registry.create(later) == record()


@pytest.mark.parametrize(
    "changes",
    [{"parameters": {"url": "s3://other/"}}, {"required_bytes": 11}, {"name": "pvc-2"}, {"dynamic": False}],
    ids=lambda changes: next(iter(changes)),
)
def test_creating_another_volume_under_the_same_id_is_a_conflict(
    registry: BlobRegistry, changes: dict[str, Any]
) -> None:
    registry.create(record())
    with pytest.raises(VolumeConflict, match=r"vol-1.*another name"):
        registry.create(record(**changes))
    assert registry.get("vol-1") == record()


def test_parameters_are_compared_after_parsing(registry: BlobRegistry) -> None:
    registry.create(record())
    assert registry.create(record(parameters={"url": "s3a://bucket/train", "uid": "0"})) == record()


def test_concurrent_equal_creations_all_get_the_same_record(registry: BlobRegistry) -> None:
    requests = [record(snapshot_id=f"{number:016x}") for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(registry.create, requests))
    assert len(set(map(VolumeRecord.model_dump_json, results))) == 1


def test_of_two_concurrent_creations_of_different_volumes_under_one_id_one_is_refused(
    registry: BlobRegistry, blobs: MemoryBlobs
) -> None:
    rival = record(parameters={"url": "s3://rival/"})

    def overtake(operation: str, key: str) -> None:
        blobs.before = None
        assert BlobRegistry(blobs, "again").create(rival) == rival

    blobs.before = overtake
    with pytest.raises(VolumeConflict):
        registry.create(record())
    assert registry.get("vol-1") == rival


def test_a_record_is_replaced_only_if_it_is_still_the_old_one(registry: BlobRegistry) -> None:
    registry.create(record())
    new = record(snapshot_id="a" * 16)
    assert registry.replace(record(), new)
    assert registry.get("vol-1") == new
    assert not registry.replace(record(), record(snapshot_id="b" * 16))
    assert registry.get("vol-1") == new
    assert not registry.replace(record("vol-2"), record("vol-2"))


def test_a_replacement_that_loses_a_race_changes_nothing(registry: BlobRegistry, blobs: MemoryBlobs) -> None:
    registry.create(record())
    rival = record(snapshot_id="c" * 16)

    def overtake(operation: str, key: str) -> None:
        if operation == "put_if_match":
            blobs.before = None
            blobs.overwrite(KEY, rival.model_dump_json().encode())

    blobs.before = overtake
    assert not registry.replace(record(), record(snapshot_id="d" * 16))
    assert registry.get("vol-1") == rival


def test_a_repeated_deletion_succeeds(registry: BlobRegistry) -> None:
    registry.create(record())
    registry.delete("vol-1")
    registry.delete("vol-1")
    assert registry.get("vol-1") is None


@pytest.mark.parametrize("volume_id", ["../../etc/passwd", "/abs", "a/b", "..", "x" * 500, "ÄÖ 😀", "Vol-1"])
def test_any_id_is_one_key_below_volumes(registry: BlobRegistry, blobs: MemoryBlobs, volume_id: str) -> None:
    registry.create(record(volume_id))
    (key,) = blobs.names()
    assert key.startswith("volumes/")
    assert key.count("/") == 1
    assert ".." not in key
    assert registry.get(volume_id) == record(volume_id)
    assert registry.get("vol-1") is None


def test_an_empty_id_is_refused(registry: BlobRegistry) -> None:
    with pytest.raises(MissingParameter, match="volume id"):
        registry.get("")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "torn"),
        (record().model_dump_json().encode()[:40], "torn"),
        (b"\xff\xfe", "torn"),
        (b"[]", "format None"),
        (b'{"format": 2}', "format 2"),
        (b'{"format": 1, "volume_id": "vol-1"}', "snapshot_id"),
        (record("vol-2").model_dump_json().encode(), "of volume 'vol-2'"),
    ],
)
def test_a_torn_or_foreign_record_is_named_and_not_trusted(
    registry: BlobRegistry, blobs: MemoryBlobs, data: bytes, says: str
) -> None:
    blobs.overwrite(KEY, data)
    for ask in (registry.get, lambda volume_id: registry.create(record(volume_id))):
        with pytest.raises(RegistryUnavailable) as refused:
            ask("vol-1")
        assert KEY in str(refused.value)
        assert says in str(refused.value)


def test_a_record_with_parameters_of_another_version_is_named(registry: BlobRegistry) -> None:
    strange = record(parameters={"url": "s3://b/", "colour": "blue"})
    with pytest.raises(RegistryUnavailable, match=r"vol-1.*colour"):
        strange.parsed()


def test_fields_of_a_later_version_are_ignored(registry: BlobRegistry, blobs: MemoryBlobs) -> None:
    blobs.overwrite(KEY, json.dumps({**json.loads(record().model_dump_json()), "later": 1}).encode())
    assert registry.get("vol-1") == record()


def test_every_method_of_an_unavailable_registry_raises_registry_unavailable(
    registry: BlobRegistry, blobs: MemoryBlobs
) -> None:
    blobs.failure = RegistryUnavailable("no answer")
    for ask in (
        lambda: registry.get("vol-1"),
        lambda: registry.create(record()),
        lambda: registry.delete("vol-1"),
        lambda: list(registry.volumes.all()),
        registry.references,
        registry.manifests,
        lambda: registry.has_manifest(SNAPSHOT),
    ):
        with pytest.raises(RegistryUnavailable, match="no answer"):
            ask()


def test_a_manifest_is_stored_fetched_and_deleted(registry: BlobRegistry, blobs: MemoryBlobs, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"rows")
    registry.put_manifest(SNAPSHOT, tmp_path / "made")
    registry.put_manifest(SNAPSHOT, tmp_path / "made")
    assert blobs.names() == [f"manifests/{SNAPSHOT}.arrow"]
    assert registry.has_manifest(SNAPSHOT)
    registry.fetch_manifest(SNAPSHOT, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"rows"
    registry.delete_manifest(SNAPSHOT)
    assert not registry.has_manifest(SNAPSHOT)
    with pytest.raises(ManifestInvalid, match=f"{SNAPSHOT}.arrow is missing"):
        registry.fetch_manifest(SNAPSHOT, tmp_path / "again")


@pytest.mark.parametrize("snapshot_id", ["", "../../volumes/x", "a/b", "x.arrow", "-0123456789"])
def test_an_invalid_snapshot_id_never_becomes_a_path(registry: BlobRegistry, tmp_path: Path, snapshot_id: str) -> None:
    with pytest.raises(ManifestInvalid, match="not the id of a snapshot"):
        registry.fetch_manifest(snapshot_id, tmp_path / "x")


# -- locations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_directory_registry_is_created_and_shared(tmp_path: Path, scheme: str) -> None:
    settings = RegistrySettings(location=f"{scheme}{tmp_path}/deep/registry")
    assert open_registry(settings).create(record("../x")) == record("../x")
    assert open_registry(settings).get("../x") == record("../x")
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "deep" / "registry" / "volumes"]


def test_a_manifest_of_a_directory_registry_is_a_hard_link_that_survives_its_deletion(tmp_path: Path) -> None:
    registry = open_registry(RegistrySettings(location=str(tmp_path / "registry")))
    (tmp_path / "made").write_bytes(b"rows")
    registry.put_manifest(SNAPSHOT, tmp_path / "made")
    registry.fetch_manifest(SNAPSHOT, tmp_path / "fetched")
    stored = tmp_path / "registry" / "manifests" / f"{SNAPSHOT}.arrow"
    assert (tmp_path / "fetched").samefile(stored)
    registry.delete_manifest(SNAPSHOT)
    assert (tmp_path / "fetched").read_bytes() == b"rows"


def test_without_links_a_manifest_of_a_directory_registry_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(RegistrySettings(location=str(tmp_path / "registry")))
    (tmp_path / "made").write_bytes(b"rows")
    registry.put_manifest(SNAPSHOT, tmp_path / "made")

    def another_file_system(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", another_file_system)
    registry.fetch_manifest(SNAPSHOT, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"rows"


def test_an_unusable_location_of_a_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RegistryUnavailable, match="file"):
        open_registry(RegistrySettings(location=str(tmp_path / "file")))
    with pytest.raises(UnsupportedUrl, match="ftp"):
        open_registry(RegistrySettings(location="ftp://host/registry"))
