"""Snapshots of volumes on real S3 servers: the versions that they pin, and what becomes of overwritten buckets."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.catalog.manifest import Manifest
from csi_driver.catalog.manifest_notes import notes_of
from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import ObjectChanged, ObjectNotFound, VersionsNotPinned
from csi_driver.model.snapshot import version_id_of
from csi_driver.model.tenant import ADMINISTRATOR
from csi_driver.objects.store import ObjectStore, read_whole
from csi_driver.settings import PolicySettings, RegistrySettings
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.dynamic_volumes import DynamicVolumes
from csi_driver.volumes.records import SnapshotRecord, VolumeRecord
from csi_driver.volumes.registry import open_registry
from csi_driver.volumes.volume_ids import dynamic_volume_id
from csi_driver.volumes.volume_snapshots import VolumeSnapshots
from csi_driver.wiring.listing_store import open_listing_store
from hayloft_lab.seaweedfs import SeaweedFsServer
from tests.support.daemons import DaemonBench
from tests.support.listers import LocalLister
from tests.support.moto_s3 import moto_endpoint  # noqa: F401
from tests.support.seaweedfs import seaweed  # noqa: F401
from tests.support.versioned_buckets import VersionedBucket, versioned_bucket

SMALL, LARGE = b"first" * 1000, bytes(range(256)) * (6 << 12)
"""One that is fetched whole, and one of 6 MiB that is fetched in ranges."""

MOTO = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "x"}


class Controller:
    """Volumes and snapshots with a registry in a directory."""

    def __init__(self, directory: Path) -> None:
        self.registry = open_registry(RegistrySettings(location=str(directory / "registry")))
        self.manifests = SnapshotService(self.registry, LocalLister(open_listing_store), directory / "work")
        self.volumes = DynamicVolumes(self.registry, self.manifests)
        self.snapshots = VolumeSnapshots(self.registry, self.manifests, PolicySettings())

    def create(self, bucket: VersionedBucket, name: str) -> VolumeRecord:
        facts = self.volumes.ensure(bucket.parameters, bucket.secrets, ADMINISTRATOR)
        return self.volumes.create(_record(name, bucket, facts.snapshot_id, facts.total_bytes, facts.file_count, facts))

    def restore(self, bucket: VersionedBucket, name: str, snapshot: SnapshotRecord) -> VolumeRecord:
        source = self.volumes.source("snapshot", snapshot.id)
        return self.volumes.create(
            _record(name, bucket, source.snapshot_id, source.total_bytes, source.file_count, source)
        )

    def manifest(self, record: VolumeRecord | SnapshotRecord) -> Manifest:
        return Manifest.open(self.manifests._local.ensure(record.snapshot_id, self.registry))


def _record(
    name: str, bucket: VersionedBucket, snapshot_id: str, total: int, files: int, facts: object
) -> VolumeRecord:
    return VolumeRecord(
        volume_id=dynamic_volume_id(name),
        name=name,
        dynamic=True,
        parameters=bucket.parameters.to_context(),
        snapshot_id=snapshot_id,
        total_bytes=total,
        file_count=files,
        created=facts.created,  # type: ignore[attr-defined]
    )


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


@pytest.fixture(params=["seaweedfs", "moto"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VersionedBucket]:
    """With two objects of which versions are kept."""
    name = f"kept-{os.urandom(4).hex()}"
    if request.param == "moto":
        made = VersionedBucket(request.getfixturevalue("moto_endpoint"), MOTO, name)
    else:
        made = versioned_bucket(request.getfixturevalue("seaweed"), name)
    made.put("small", SMALL)
    made.put("directory/large", LARGE)
    yield made
    made.close()


def read(store: ObjectStore, manifest: Manifest, path: str) -> bytes:
    """By both ways that readers take: whole, and in ranges."""
    node = manifest.tree.resolve(path.encode())
    assert node is not None
    file = manifest.tree.file(node)
    whole = b"".join(read_whole(store, file.key, file.size_bytes, if_match=file.etag).parts)
    parts = store.read_range(file.key, ByteRange(0, file.size_bytes), if_match=file.etag)
    assert b"".join(parts) == whole
    return whole


@pytest.mark.promise("S320")
@pytest.mark.server
def test_a_snapshot_shows_the_old_bytes_of_an_overwritten_bucket(
    controller: Controller, bucket: VersionedBucket
) -> None:
    volume = controller.create(bucket, "v")
    bucket.put("small", b"second" * 1000)  # before the snapshot: it is of what the volume shows
    snapshot = controller.snapshots.create("s", volume.volume_id, "required", bucket.secrets)
    assert (snapshot.pinned_count, snapshot.why) == (2, "")
    bucket.put("directory/large", LARGE[::-1])
    bucket.delete("small")
    manifest = controller.manifest(controller.restore(bucket, "r", snapshot))
    store = open_listing_store(bucket.parameters, bucket.secrets)
    try:
        assert read(store, manifest, "small") == SMALL
        assert read(store, manifest, "directory/large") == LARGE
        with pytest.raises((ObjectChanged, ObjectNotFound)):
            read(store, controller.manifest(volume), "small")
    finally:
        store.close()


@pytest.mark.promise("S321")
@pytest.mark.server
def test_a_version_that_the_store_no_longer_has_is_named(controller: Controller, bucket: VersionedBucket) -> None:
    volume = controller.create(bucket, "v")
    snapshot = controller.snapshots.create("s", volume.volume_id, "auto", bucket.secrets)
    manifest = controller.manifest(snapshot)
    node = manifest.tree.resolve(b"small")
    assert node is not None
    file = manifest.tree.file(node)
    version_id = version_id_of(file.key)
    bucket.put("small", b"second")
    bucket.delete("small", version_id)
    store = open_listing_store(bucket.parameters, bucket.secrets)
    try:
        with pytest.raises(ObjectNotFound, match=rf"data/small.*no longer has its version {version_id}"):
            read(store, manifest, "small")
    finally:
        store.close()
    with pytest.raises(ObjectChanged, match="data/small: the store no longer has the version that the volume shows"):
        controller.snapshots.create("late", volume.volume_id, "auto", bucket.secrets)
    assert controller.snapshots.page(most=0, token="").entries == [snapshot]


@pytest.mark.promise("S322")
@pytest.mark.server
def test_a_snapshot_of_a_bucket_without_versions_works_and_says_what_it_cannot_promise(
    controller: Controller,
    seaweed: SeaweedFsServer,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket = versioned_bucket(seaweed, f"plain-{os.urandom(4).hex()}", versioned=False)
    bucket.put("a", SMALL)
    bucket.put("b", LARGE)  # of which SeaweedFS lists another ETag among the versions
    volume = controller.create(bucket, "v")
    with pytest.raises(VersionsNotPinned, match=r"2 of 2 objects cannot be pinned.*enable versioning"):
        controller.snapshots.create("strict", volume.volume_id, "required", bucket.secrets)
    snapshot = controller.snapshots.create("s", volume.volume_id, "auto", bucket.secrets)
    assert snapshot.pinned_count == 0
    assert "kept no versions" in caplog.text
    manifest = controller.manifest(controller.restore(bucket, "r", snapshot))
    assert "not pinned by a version" in notes_of(manifest)[0]
    store = open_listing_store(bucket.parameters, bucket.secrets)
    try:
        assert read(store, manifest, "a") == SMALL
        assert read(store, manifest, "b") == LARGE
        bucket.put("a", SMALL[::-1])
        with pytest.raises(ObjectChanged, match="data/a"):
            read(store, manifest, "a")
    finally:
        store.close()
        bucket.close()


@pytest.mark.server
def test_a_bucket_that_began_to_keep_versions_pins_those_that_it_has(
    controller: Controller,
    seaweed: SeaweedFsServer,  # noqa: F811
) -> None:
    bucket = versioned_bucket(seaweed, f"mixed-{os.urandom(4).hex()}", versioned=False)
    bucket.put("before", SMALL)
    bucket.keep_versions()
    bucket.put("after", SMALL)
    snapshot = controller.snapshots.create("s", controller.create(bucket, "v").volume_id, "auto", bucket.secrets)
    assert snapshot.pinned_count == 1
    bucket.put("before", b"x")
    store = open_listing_store(bucket.parameters, bucket.secrets)
    try:
        manifest = controller.manifest(snapshot)
        assert read(store, manifest, "before") == read(store, manifest, "after") == SMALL
    finally:
        store.close()
        bucket.close()


@pytest.mark.promise("S320", "S321")
@pytest.mark.fuse
@pytest.mark.server
def test_a_mounted_volume_of_a_snapshot_reads_the_old_bytes(seaweed: SeaweedFsServer) -> None:  # noqa: F811
    home = Path(tempfile.mkdtemp(prefix="hayloft-", dir="/var/tmp"))
    bucket = versioned_bucket(seaweed, f"kept-{os.urandom(4).hex()}")
    bench = DaemonBench(home, flags=("--free-floor=64MiB",))
    try:
        version_id = bucket.put("gone", SMALL)
        bucket.put("small", SMALL)
        bucket.put("directory/large", LARGE)
        controller = Controller(home)
        volume = controller.create(bucket, "v")
        snapshot = controller.snapshots.create("s", volume.volume_id, "required", bucket.secrets)
        restored = controller.restore(bucket, "r", snapshot)
        for path in ("small", "directory/large"):
            bucket.put(path, b"new")
        bucket.delete("gone", version_id)
        bench.start()
        mounted = bench.mount(bucket, restored.volume_id)
        assert (mounted / "small").read_bytes() == SMALL
        assert (mounted / "directory" / "large").read_bytes() == LARGE
        with pytest.raises(OSError, match="Stale") as failed:
            (mounted / "gone").read_bytes()
        assert failed.value.errno == errno.ESTALE
        live = bench.mount(bucket, volume.volume_id)  # the bytes are cached by now: of both volumes one copy
        assert (live / "small").read_bytes() == SMALL
        bench.unmount(live, volume.volume_id)
        bench.unmount(mounted, restored.volume_id)
    finally:
        bench.close()
        bucket.close()
        shutil.rmtree(home, ignore_errors=True)
