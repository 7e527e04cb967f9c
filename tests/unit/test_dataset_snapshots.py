"""The snapshot that a volume shows: listed once, shared by all nodes, refreshed by age, deleted without remains."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from csi_driver.catalog.manifest import Manifest
from csi_driver.model.errors import (
    AccessDenied,
    EmptyDataset,
    ManifestInvalid,
    OperationPending,
    RegistryUnavailable,
    StoreUnavailable,
    VolumeConflict,
    VolumeNotFound,
)
from csi_driver.model.tenant import ADMINISTRATOR
from csi_driver.objects.store import ObjectStore
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.dynamic_volumes import DynamicVolumes
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import VolumeRecord
from csi_driver.volumes.registry import BlobRegistry
from csi_driver.volumes.volume_ids import dynamic_volume_id
from hayloft_lab.memory_store import MemoryStore
from tests.support.listers import LocalLister
from tests.support.memory_blobs import MemoryBlobs

URL = {"url": "memory://bucket/train"}
PARAMETERS = VolumeParameters.parse(URL)
DYNAMIC = dynamic_volume_id("pvc-1")


class World:
    """A dataset, a registry, and a clock that all nodes share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dataset = MemoryStore({"train/a": b"1", "train/b": b"22"})
        self.blobs = MemoryBlobs()
        self.registry = BlobRegistry(self.blobs, "memory://registry")
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.listings: list[Mapping[str, str]] = []
        self.refusal: Exception | None = None
        self.gate: threading.Event | None = None
        self.started = threading.Event()

    def node(self, name: str = "node-1") -> SnapshotService:
        return SnapshotService(self.registry, LocalLister(self._open), self.directory / name, lambda: self.now)

    def later(self, **by: float) -> None:
        self.now += timedelta(**by)

    def manifests(self) -> list[str]:
        return [key for key in self.blobs.names() if key.startswith("manifests/")]

    def unfinished(self) -> list[Path]:
        return list(self.directory.glob("*/unfinished/*"))

    def _open(self, parameters: VolumeParameters, secrets: Mapping[str, str]) -> ObjectStore:
        self.listings.append(secrets)
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.refusal is not None:
            raise self.refusal
        return self.dataset


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def names(path: Path) -> list[str]:
    tree = Manifest.open(path).tree
    return sorted(tree.path(row + 2).decode() for row in range(tree.file_count))


def create(world: World, name: str = "pvc-1", **changes: str) -> VolumeRecord:
    """The controller's part of CreateVolume."""
    volumes = DynamicVolumes(world.registry, world.node("controller"))
    parameters = VolumeParameters.parse({**URL, **changes})
    facts = volumes.ensure(parameters, {}, ADMINISTRATOR)
    wish = VolumeRecord(
        volume_id=dynamic_volume_id(name),
        name=name,
        dynamic=True,
        parameters=parameters.to_context(),
        snapshot_id=facts.snapshot_id,
        total_bytes=facts.total_bytes,
        file_count=facts.file_count,
        created=facts.created,
    )
    return volumes.create(wish)


def delete(world: World, name: str = "pvc-1") -> None:
    DynamicVolumes(world.registry, world.node("controller")).delete(dynamic_volume_id(name))


# -- static volumes ---------------------------------------------------------------------------------------------------


def test_the_first_node_lists_a_static_volume_and_others_take_its_snapshot(world: World) -> None:
    first = world.node("node-1").ensure("static", PARAMETERS, {"key": "secret"})
    second = world.node("node-2").ensure("static", PARAMETERS, {})
    assert len(world.listings) == 1
    assert second.record == first.record
    assert names(first.manifest_path) == names(second.manifest_path) == ["a", "b"]
    assert first.manifest_path != second.manifest_path
    assert (first.record.total_bytes, first.record.file_count, first.record.dynamic) == (3, 2, False)


@pytest.mark.promise("S328")
def test_changes_of_a_static_volume_outlast_its_next_listing(world: World) -> None:
    record = world.node().ensure("static", PARAMETERS, {}).record
    changed = {"snapshotMaxAge": "1h", "warmup": "background"}
    assert world.registry.replace(record, record.model_copy(update={"modified": changed}))
    world.later(minutes=50)
    assert len(world.listings) == 1
    world.node("node-2").ensure("static", PARAMETERS, {})
    assert len(world.listings) == 1, "its snapshot may be older now"
    world.later(minutes=20)
    again = world.node("node-2").ensure("static", PARAMETERS, {}).record
    assert len(world.listings) == 2
    assert again.modified == changed


@pytest.mark.promise("S110")
def test_secrets_never_reach_the_registry_or_the_disk(world: World) -> None:
    world.node().ensure("static", PARAMETERS, {"secret_access_key": "hush-hush"})
    for key in world.blobs.names():
        blob = world.blobs.get(key)
        assert blob is not None
        assert b"hush" not in blob[0]
    assert all(b"hush" not in path.read_bytes() for path in world.directory.rglob("*") if path.is_file())


@pytest.mark.promise("S24")
def test_a_new_mount_lists_the_dataset_again_once_the_snapshot_is_too_old(world: World) -> None:
    node = world.node()
    old = node.ensure("static", PARAMETERS, {})
    world.dataset.put("train/c", b"333")
    world.later(minutes=10)
    assert node.ensure("static", PARAMETERS, {}).snapshot_id == old.snapshot_id
    world.later(seconds=1)
    new = node.ensure("static", PARAMETERS, {})
    assert names(new.manifest_path) == ["a", "b", "c"]
    assert world.manifests() == [f"manifests/{new.snapshot_id}.arrow"]
    assert names(old.manifest_path) == ["a", "b"], "a mount that exists keeps its file"


def test_listing_an_unchanged_dataset_again_keeps_the_manifest_and_resets_its_age(world: World) -> None:
    old = world.node().ensure("static", PARAMETERS, {})
    world.later(hours=1)
    new = world.node().ensure("static", PARAMETERS, {})
    assert new.snapshot_id == old.snapshot_id
    assert new.record.created > old.record.created
    assert world.manifests() == [f"manifests/{new.snapshot_id}.arrow"]


def test_with_an_age_of_zero_every_later_mount_lists(world: World) -> None:
    always = VolumeParameters.parse({**URL, "snapshotMaxAge": "0"})
    for _ in range(3):
        world.node().ensure("static", always, {})
        world.later(seconds=1)
    assert len(world.listings) == 3


def test_a_static_volume_with_other_parameters_is_listed_again(world: World) -> None:
    world.node().ensure("static", PARAMETERS, {})
    changed = VolumeParameters.parse({**URL, "include": "b"})
    assert names(world.node().ensure("static", changed, {}).manifest_path) == ["b"]
    stored = world.registry.get("static")
    assert stored is not None
    assert stored.parsed() == changed


def test_another_owner_or_mode_does_not_cause_a_new_listing(world: World) -> None:
    world.node().ensure("static", PARAMETERS, {})
    world.node().ensure("static", VolumeParameters.parse({**URL, "uid": "1000"}), {})
    assert len(world.listings) == 1


def test_a_lost_manifest_of_a_static_volume_is_built_again(world: World) -> None:
    first = world.node("node-1").ensure("static", PARAMETERS, {})
    world.registry.delete_manifest(first.snapshot_id)
    second = world.node("node-2").ensure("static", PARAMETERS, {})
    assert names(second.manifest_path) == ["a", "b"]
    assert world.registry.has_manifest(second.snapshot_id)


def test_a_torn_manifest_in_the_registry_is_not_mapped(world: World) -> None:
    record = create(world)
    key = f"manifests/{record.snapshot_id}.arrow"
    blob = world.blobs.get(key)
    assert blob is not None
    world.blobs.overwrite(key, blob[0][:-20])
    with pytest.raises(ManifestInvalid):
        world.node().ensure(DYNAMIC, PARAMETERS, {})
    assert world.unfinished() == []


def test_a_local_manifest_that_is_damaged_is_fetched_again(world: World) -> None:
    snapshot = world.node().ensure("static", PARAMETERS, {})
    snapshot.manifest_path.write_bytes(b"torn")
    assert names(world.node().ensure("static", PARAMETERS, {}).manifest_path) == ["a", "b"]
    assert len(world.listings) == 1


def test_two_nodes_that_list_concurrently_show_the_same_snapshot(world: World) -> None:
    def overtake(operation: str, key: str) -> None:
        if operation == "put_if_absent":
            world.blobs.before = None
            world.dataset.put("train/late", b"x")
            world.node("node-2").ensure("static", PARAMETERS, {})

    world.blobs.before = overtake
    slow = world.node("node-1").ensure("static", PARAMETERS, {})
    assert names(slow.manifest_path) == ["a", "b", "late"]
    assert world.manifests() == [f"manifests/{slow.snapshot_id}.arrow"]


def test_two_nodes_that_refresh_concurrently_show_the_same_snapshot(world: World) -> None:
    world.node("node-1").ensure("static", PARAMETERS, {})
    world.later(hours=1)

    def overtake(operation: str, key: str) -> None:
        if operation == "put_if_match":
            world.blobs.before = None
            world.dataset.put("train/late", b"x")
            world.node("node-2").ensure("static", PARAMETERS, {})

    world.blobs.before = overtake
    slow = world.node("node-1").ensure("static", PARAMETERS, {})
    assert names(slow.manifest_path) == ["a", "b", "late"]
    assert world.manifests() == [f"manifests/{slow.snapshot_id}.arrow"]


def test_an_inline_volume_is_listed_for_its_mount_and_leaves_no_record(world: World) -> None:
    volume_id = "csi-" + "0f" * 32
    snapshot = world.node().ensure(volume_id, PARAMETERS, {})
    assert names(snapshot.manifest_path) == ["a", "b"]
    assert world.blobs.names() == []


def test_the_manifest_of_an_inline_volume_is_for_one_mount(world: World) -> None:
    node = world.node()
    one, other = (node.ensure(f"csi-{number:064x}", PARAMETERS, {}) for number in range(2))
    static = node.ensure("static", PARAMETERS, {})
    assert one.snapshot_id == other.snapshot_id == static.snapshot_id
    for snapshot in (one, one, static):
        node.release(snapshot)
    assert not one.manifest_path.exists()
    assert names(other.manifest_path) == names(static.manifest_path) == ["a", "b"]


def test_local_manifests_are_removed_after_a_day_without_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old = world.node().ensure("static", PARAMETERS, {}).manifest_path
    abandoned = world.directory / "node-1" / "unfinished" / "killed.arrow"
    abandoned.touch()
    world.node()
    assert old.exists()
    assert abandoned.exists()
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    world.node()
    assert not old.exists()
    assert not abandoned.exists()


def test_a_deleted_volume_leaves_neither_record_nor_manifest(world: World) -> None:
    world.node().ensure("static", PARAMETERS, {})
    world.node().delete("static")
    world.node().delete("static")
    assert world.blobs.names() == []


# -- concurrent calls --------------------------------------------------------------------------------------------------


def test_concurrent_equal_requests_share_one_listing(world: World) -> None:
    node = world.node()
    world.gate = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(node.ensure, "static", PARAMETERS, {}) for _ in range(8)]
        assert world.started.wait(30)
        world.gate.set()
        snapshots = [answer.result() for answer in asked]
    assert len(world.listings) == 1
    assert len({snapshot.snapshot_id for snapshot in snapshots}) == 1


def test_a_different_concurrent_request_is_pending_and_has_to_be_retried(world: World) -> None:
    node = world.node()
    world.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(node.ensure, "static", PARAMETERS, {})
        assert world.started.wait(30)
        with pytest.raises(OperationPending, match="static") as refused:
            node.ensure("static", PARAMETERS, {"key": "hush"})
        world.gate.set()
        asked.result()
    assert "hush" not in str(refused.value)
    assert node.ensure("static", PARAMETERS, {"key": "hush"}).record.file_count == 2


@pytest.mark.parametrize("refusal", [AccessDenied("no"), StoreUnavailable("gone"), None], ids=["403", "down", "empty"])
def test_a_failed_listing_leaves_no_files_and_can_be_retried(world: World, refusal: Exception | None) -> None:
    world.refusal = refusal
    parameters = PARAMETERS if refusal else VolumeParameters.parse({**URL, "include": "nothing"})
    with pytest.raises(type(refusal) if refusal else EmptyDataset):
        world.node().ensure("static", parameters, {})
    assert world.blobs.names() == []
    assert world.unfinished() == []
    world.refusal = None
    assert world.node().ensure("static", PARAMETERS, {}).record.file_count == 2


def test_an_unavailable_registry_is_named(world: World) -> None:
    world.blobs.failure = RegistryUnavailable("no answer")
    with pytest.raises(RegistryUnavailable, match="no answer"):
        world.node().ensure("static", PARAMETERS, {})
    assert world.unfinished() == []


# -- dynamic volumes --------------------------------------------------------------------------------------------------


@pytest.mark.promise("S23")
def test_a_dynamic_volume_always_shows_the_snapshot_of_its_creation(world: World) -> None:
    record = create(world)
    world.dataset.put("train/c", b"333")
    world.later(days=400)
    snapshot = world.node().ensure(DYNAMIC, PARAMETERS, {})
    assert snapshot.record == record
    assert names(snapshot.manifest_path) == ["a", "b"]
    assert len(world.listings) == 1


def test_a_dynamic_volume_is_not_listed_again_when_its_record_or_manifest_is_lost(world: World) -> None:
    with pytest.raises(VolumeNotFound, match="registry"):
        world.node().ensure(DYNAMIC, PARAMETERS, {})
    record = create(world)
    world.registry.delete_manifest(record.snapshot_id)
    with pytest.raises(ManifestInvalid, match=record.snapshot_id):
        world.node().ensure(DYNAMIC, PARAMETERS, {})
    assert len(world.listings) == 1


def test_a_dynamic_volume_with_another_selection_is_a_conflict(world: World) -> None:
    create(world)
    with pytest.raises(VolumeConflict, match=DYNAMIC):
        world.node().ensure(DYNAMIC, VolumeParameters.parse({**URL, "include": "a"}), {})


def test_a_listing_without_a_record_leaves_nothing_in_the_registry(world: World) -> None:
    DynamicVolumes(world.registry, world.node()).ensure(PARAMETERS, {}, ADMINISTRATOR)
    assert world.blobs.names() == []


def test_a_refused_creation_removes_its_manifest(world: World) -> None:
    record = create(world)
    world.dataset.put("train/c", b"333")
    with pytest.raises(VolumeConflict):
        create(world, include="c")
    assert world.manifests() == [f"manifests/{record.snapshot_id}.arrow"]


def test_deleting_a_volume_removes_its_manifest_with_the_last_volume_that_shows_it(world: World) -> None:
    create(world, "pvc-1")
    shared = create(world, "pvc-2")
    assert len(world.manifests()) == 1
    delete(world, "pvc-1")
    assert world.manifests() == [f"manifests/{shared.snapshot_id}.arrow"]
    delete(world, "pvc-2")
    delete(world, "pvc-2")
    assert world.blobs.names() == []


def test_a_manifest_that_a_new_volume_shares_during_its_deletion_is_stored_again(world: World) -> None:
    create(world, "pvc-1")

    def overtake(operation: str, key: str) -> None:
        if operation == "delete" and key.startswith("manifests/"):
            world.blobs.before = None
            create(world, "pvc-2")

    world.blobs.before = overtake
    delete(world, "pvc-1")
    snapshot = world.node().ensure(dynamic_volume_id("pvc-2"), PARAMETERS, {})
    assert names(snapshot.manifest_path) == ["a", "b"]


def test_an_unreadable_record_of_another_volume_keeps_manifests_but_not_the_deletion(world: World) -> None:
    record = create(world)
    world.blobs.overwrite("volumes/torn.json", b"{")
    delete(world)
    assert world.registry.get(DYNAMIC) is None
    assert world.registry.has_manifest(record.snapshot_id)
