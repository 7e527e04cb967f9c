"""The requirements of csi-sanity (kubernetes-csi/csi-test), over a real Unix socket with real mounts. No daemon serves
the FUSE mounts: no call may access a volume's files."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.model.errors import DaemonUnavailable
from csi_driver.mounts.mount_table import MountTable
from csi_driver.rpc.pb import csi_pb2
from tests.support.csi_calls import (
    DATASET_BYTES,
    CsiClient,
    Mode,
    VolumesInMemory,
    block_capability,
    create_request,
    mount_capability,
    publish_request,
    refused,
    serving,
    stage_request,
)
from tests.support.data_planes import MountingDataPlane

pytestmark = pytest.mark.fuse

Code = grpc.StatusCode
SIZE = 10 << 30
MISSING = csi_pb2.Volume(volume_id="no-such-volume")


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: that of a socket may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="hayloft-csi-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data_plane(home: Path) -> Iterator[MountingDataPlane]:
    plane = MountingDataPlane()
    yield plane
    plane.close(home)


@pytest.fixture
def volumes() -> VolumesInMemory:
    return VolumesInMemory()


@pytest.fixture
def driver(home: Path, data_plane: MountingDataPlane, volumes: VolumesInMemory) -> Iterator[CsiClient]:
    with serving(home / "csi.sock", data_plane, volumes, kubelet_directory=home) as client:
        yield client


@pytest.fixture
def staging(home: Path) -> Path:
    path = home / "staging"
    path.mkdir()
    return path


@pytest.fixture
def target(home: Path) -> Path:
    return home / "pods" / "pod-1" / "mount"


# -- identity ----------------------------------------------------------------------------------------------------------


def test_plugin_info_names_the_driver_and_its_version(driver: CsiClient) -> None:
    info = driver.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == ("csi.hayloft.dev", "0.0-test")


def test_plugin_capabilities_advertise_both_controllers_expansion_and_no_topology(driver: CsiClient) -> None:
    capabilities = driver.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest()).capabilities
    kind, expansion = csi_pb2.PluginCapability.Service, csi_pb2.PluginCapability.VolumeExpansion
    services = [capability.service.type for capability in capabilities if capability.HasField("service")]
    assert services == [kind.CONTROLLER_SERVICE, kind.GROUP_CONTROLLER_SERVICE]
    assert [one.volume_expansion.type for one in capabilities if one.HasField("volume_expansion")] == [expansion.ONLINE]


def test_probe_is_ready_while_the_daemon_answers_and_not_ready_while_it_does_not(
    driver: CsiClient, data_plane: MountingDataPlane
) -> None:
    assert driver.identity.Probe(csi_pb2.ProbeRequest()).ready.value is True
    data_plane.failure = DaemonUnavailable("no daemon")
    answer = driver.identity.Probe(csi_pb2.ProbeRequest())
    assert answer.HasField("ready")
    assert answer.ready.value is False


# -- controller --------------------------------------------------------------------------------------------------------


def test_controller_advertises_what_it_does_and_no_publication(driver: CsiClient) -> None:
    capabilities = driver.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest()).capabilities
    kind = csi_pb2.ControllerServiceCapability.RPC
    names = {kind.Type.Name(capability.rpc.type) for capability in capabilities}
    assert names >= {
        *("CREATE_DELETE_VOLUME", "LIST_VOLUMES", "GET_VOLUME", "CLONE_VOLUME", "EXPAND_VOLUME", "MODIFY_VOLUME"),
        *("CREATE_DELETE_SNAPSHOT", "LIST_SNAPSHOTS", "GET_SNAPSHOT", "SINGLE_NODE_MULTI_WRITER"),
        *("GET_VOLUME_HEALTH", "LIST_VOLUME_HEALTH"),
    }
    # Nothing is published by the controller, so it cannot know where a volume is.
    assert names.isdisjoint({"PUBLISH_UNPUBLISH_VOLUME", "PUBLISH_READONLY", "LIST_VOLUMES_PUBLISHED_NODES"})


def test_group_controller_advertises_group_snapshots(driver: CsiClient) -> None:
    answer = driver.groups.GroupControllerGetCapabilities(csi_pb2.GroupControllerGetCapabilitiesRequest())
    kind = csi_pb2.GroupControllerServiceCapability.RPC
    assert [one.rpc.type for one in answer.capabilities] == [kind.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT]


def test_calls_that_are_not_advertised_are_unimplemented(driver: CsiClient) -> None:
    with refused(Code.UNIMPLEMENTED):
        driver.controller.GetCapacity(csi_pb2.GetCapacityRequest())
    with refused(Code.UNIMPLEMENTED):
        driver.controller.ControllerPublishVolume(csi_pb2.ControllerPublishVolumeRequest(volume_id="v"))


def test_create_fails_without_a_name(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.create("")


def test_create_fails_without_capabilities(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.create("volume", volume_capabilities=[])


def test_create_returns_a_volume_of_at_least_the_required_size(driver: CsiClient) -> None:
    assert driver.create("no-size").capacity_bytes == DATASET_BYTES
    sized = driver.create("sized", capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE, limit_bytes=SIZE))
    assert sized.capacity_bytes == SIZE
    assert sized.volume_id


def test_create_of_the_same_name_and_size_gives_the_same_volume(driver: CsiClient, volumes: VolumesInMemory) -> None:
    capacity = csi_pb2.CapacityRange(required_bytes=SIZE)
    assert driver.create("twice", capacity_range=capacity) == driver.create("twice", capacity_range=capacity)
    assert len(volumes.listings) == 1, "the second call must not list the dataset again"


def test_create_of_the_same_name_and_another_size_already_exists(driver: CsiClient) -> None:
    driver.create("twice", capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE, limit_bytes=SIZE))
    with refused(Code.ALREADY_EXISTS):
        driver.create("twice", capacity_range=csi_pb2.CapacityRange(required_bytes=2 * SIZE, limit_bytes=2 * SIZE))


def test_create_takes_a_name_of_128_bytes(driver: CsiClient) -> None:
    volume = driver.create("a" * 128)
    assert 0 < len(volume.volume_id.encode()) <= 128


def test_create_takes_any_unicode_name(driver: CsiClient) -> None:
    first, second = driver.create("Größe/../ ☃"), driver.create("Größe/../ ☂")
    assert first.volume_id != second.volume_id
    assert "/" not in first.volume_id


def test_delete_fails_without_an_id(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest())


def test_delete_of_an_unknown_volume_succeeds(driver: CsiClient) -> None:
    driver.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="reallyfakevolumeid"))


def test_delete_removes_the_volume_and_may_be_repeated(driver: CsiClient, volumes: VolumesInMemory) -> None:
    request = csi_pb2.DeleteVolumeRequest(volume_id=driver.create("gone").volume_id)
    driver.controller.DeleteVolume(request)
    assert volumes.records == {}
    driver.controller.DeleteVolume(request)


def test_validate_fails_without_id_or_capabilities(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.controller.ValidateVolumeCapabilities(csi_pb2.ValidateVolumeCapabilitiesRequest())
    with refused(Code.INVALID_ARGUMENT):
        driver.controller.ValidateVolumeCapabilities(csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id="id"))


def test_validate_of_an_unknown_volume_is_not_found(driver: CsiClient) -> None:
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id="some", volume_capabilities=[mount_capability()])
    with refused(Code.NOT_FOUND):
        driver.controller.ValidateVolumeCapabilities(request)


def test_validate_confirms_what_create_accepted(driver: CsiClient) -> None:
    volume = driver.create("valid")
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id, volume_capabilities=[mount_capability()], volume_context=volume.volume_context
    )
    confirmed = driver.controller.ValidateVolumeCapabilities(request).confirmed
    assert list(confirmed.volume_capabilities) == [mount_capability()]


# -- node: missing fields ---------------------------------------------------------------------------------------------


def test_node_info_has_an_id_and_no_limit(driver: CsiClient) -> None:
    info = driver.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
    assert (info.node_id, info.max_volumes_per_node) == ("node-1", 0)
    assert not info.HasField("accessible_topology")


def test_node_advertises_what_it_serves(driver: CsiClient) -> None:
    capabilities = driver.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest()).capabilities
    kind = csi_pb2.NodeServiceCapability.RPC
    claimed = [capability.rpc.type for capability in capabilities]
    assert claimed == [
        *(kind.STAGE_UNSTAGE_VOLUME, kind.GET_VOLUME_STATS, kind.EXPAND_VOLUME),
        *(kind.VOLUME_CONDITION, kind.SINGLE_NODE_MULTI_WRITER, kind.VOLUME_MOUNT_GROUP),
        *(kind.GET_VOLUME_HEALTH, kind.GET_STORAGE_HEALTH),
    ]


@pytest.mark.parametrize("missing", ["volume_id", "staging_target_path", "volume_capability"])
def test_stage_fails_when_something_is_missing(driver: CsiClient, staging: Path, missing: str) -> None:
    request = stage_request(MISSING, staging)
    request.ClearField(missing)  # type: ignore[arg-type]
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.node.NodeStageVolume(request)
    assert missing in found[0].message


@pytest.mark.parametrize("missing", ["volume_id", "target_path", "volume_capability"])
def test_publish_fails_when_something_is_missing(driver: CsiClient, staging: Path, target: Path, missing: str) -> None:
    request = publish_request(MISSING, staging, target)
    request.ClearField(missing)  # type: ignore[arg-type]
    with refused(Code.INVALID_ARGUMENT) as found:
        driver.node.NodePublishVolume(request)
    assert missing in found[0].message
    assert not target.exists()


def test_publish_without_a_staging_path_fails_a_precondition(driver: CsiClient, target: Path) -> None:
    with refused(Code.FAILED_PRECONDITION):
        driver.node.NodePublishVolume(publish_request(MISSING, None, target))


def test_publish_before_staging_fails_a_precondition_and_binds_nothing(
    driver: CsiClient, staging: Path, target: Path
) -> None:
    with refused(Code.FAILED_PRECONDITION):
        driver.publish(MISSING, staging, target)
    assert MountTable.read().at(target) is None
    assert not target.exists()


def test_unstage_and_unpublish_fail_when_something_is_missing(driver: CsiClient, staging: Path) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.unstage("", staging)
    with refused(Code.INVALID_ARGUMENT):
        driver.node.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(volume_id="id"))
    with refused(Code.INVALID_ARGUMENT):
        driver.unpublish("", staging)
    with refused(Code.INVALID_ARGUMENT):
        driver.node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="id"))


def test_stats_fail_when_something_is_missing(driver: CsiClient) -> None:
    with refused(Code.INVALID_ARGUMENT):
        driver.stats("", "some/path")
    with refused(Code.INVALID_ARGUMENT):
        driver.stats("id", "")


@pytest.mark.parametrize("path", ["some/path", "/some/path"])
def test_stats_of_a_path_that_shows_no_volume_are_not_found(driver: CsiClient, path: str) -> None:
    with refused(Code.NOT_FOUND):
        driver.stats("id", path)


# -- node: lifecycles -------------------------------------------------------------------------------------------------


def test_a_volume_goes_through_its_complete_lifecycle(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path, target: Path
) -> None:
    volume = driver.create("life")
    driver.stage(volume, staging)
    driver.publish(volume, staging, target)
    entry = MountTable.read().at(target)
    assert entry is not None
    assert entry.fs_type == "fuse.hayloft"
    assert entry.options >= {"ro", "nosuid", "nodev"}
    driver.unpublish(volume.volume_id, target)
    assert not target.exists()
    driver.unstage(volume.volume_id, staging)
    assert MountTable.read().at(staging) is None
    assert data_plane.requests == []
    driver.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id))
    assert MountTable.read().below(staging.parent) == ()


@pytest.mark.promise("S93")
def test_every_call_may_be_repeated(driver: CsiClient, staging: Path, target: Path) -> None:
    volume = driver.create("again")
    for _ in range(3):
        driver.stage(volume, staging)
    for _ in range(3):
        driver.publish(volume, staging, target)
    below = [entry.mount_point for entry in MountTable.read().below(staging.parent)]
    assert sorted(below) == sorted([str(staging), str(target)]), "nothing is mounted twice"
    for _ in range(3):
        driver.unpublish(volume.volume_id, target)
    for _ in range(3):
        driver.unstage(volume.volume_id, staging)
    assert MountTable.read().below(staging.parent) == ()


def test_a_volume_is_published_at_several_targets(driver: CsiClient, staging: Path, home: Path) -> None:
    volume = driver.create("several")
    driver.stage(volume, staging)
    targets = [home / f"pod-{number}" for number in range(3)]
    for target in targets:
        driver.publish(volume, staging, target, volume_capability=mount_capability(Mode.MULTI_NODE_READER_ONLY))
    driver.unpublish(volume.volume_id, targets[0])
    assert MountTable.read().at(targets[1]) is not None
    for target in targets[1:]:
        driver.unpublish(volume.volume_id, target)
    driver.unstage(volume.volume_id, staging)


def test_unpublish_and_unstage_of_an_unknown_volume_succeed(driver: CsiClient, staging: Path, target: Path) -> None:
    driver.unpublish("never", target)
    driver.unstage("never", staging)


@pytest.mark.promise("S269")
def test_stats_describe_the_dataset(driver: CsiClient, staging: Path, target: Path) -> None:
    volume = driver.create("stats")
    driver.stage(volume, staging)
    driver.publish(volume, staging, target)
    for path in (target, staging):
        answer = driver.stats(volume.volume_id, path)
        usage = {entry.unit: (entry.total, entry.used, entry.available) for entry in answer.usage}
        kind = csi_pb2.VolumeUsage
        assert usage == {kind.BYTES: (3_000_000_000, 0, 3_000_000_000), kind.INODES: (42, 0, 42)}
        # KubePersistentVolumeFillingUp and KubePersistentVolumeInodesFillingUp of kubernetes-mixin, and the usual rule.
        for total, used, available in usage.values():
            assert not (available / total < 0.03 and used > 0)
            assert not used / total > 0.85
        assert not answer.volume_condition.abnormal
        assert answer.volume_condition.message == "all well"
    with refused(Code.NOT_FOUND):
        driver.stats(volume.volume_id, target.parent)
    with refused(Code.NOT_FOUND):
        driver.stats("another-volume", target)


def test_staging_with_other_attributes_already_exists(driver: CsiClient, staging: Path) -> None:
    volume = driver.create("attributes")
    driver.stage(volume, staging)
    with refused(Code.ALREADY_EXISTS):
        driver.stage(volume, staging, volume_context={"url": "s3://another/"})


def test_two_calls_for_one_volume_at_the_same_time_abort_one(
    driver: CsiClient, data_plane: MountingDataPlane, staging: Path, home: Path
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        assert go_on.wait(20)

    data_plane.before = wait
    volume = driver.create("busy")
    first = driver.node.NodeStageVolume.future(stage_request(volume, staging))
    assert arrived.wait(20)
    data_plane.before = lambda: None
    try:
        with refused(Code.ABORTED):
            driver.unstage(volume.volume_id, staging)
        other = home / "other"
        other.mkdir()
        driver.stage(driver.create("not-busy"), other)
    finally:
        go_on.set()
    first.result(20)
    driver.unstage(volume.volume_id, staging)


# -- controller: every field of every call -----------------------------------------------------------------------------

LONG = "x" * 4097
CONTROL = "a\x01b"
SNAPSHOT = csi_pb2.CreateSnapshotRequest(name="s", source_volume_id="hayloft-v")
GROUP = csi_pb2.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=["hayloft-v"])
EXPANSION = csi_pb2.ControllerExpandVolumeRequest(
    volume_id="v", capacity_range=csi_pb2.CapacityRange(required_bytes=SIZE)
)
CHANGE = csi_pb2.ControllerModifyVolumeRequest(volume_id="v", mutable_parameters={"warmup": "wait"})
VALIDATION = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id="v", volume_capabilities=[mount_capability()])
IDS = ("", LONG, CONTROL)
"""Empty (which is missing: proto3 does not tell them apart), too long, and no text."""

FIELDS: list[tuple[str, object, str, list[object]]] = [
    ("CreateVolume", create_request("v"), "name", [*IDS]),
    ("CreateVolume", create_request("v"), "volume_capabilities", [[], [block_capability()], [mount_capability(0)]]),
    ("CreateVolume", create_request("v"), "capacity_range", [csi_pb2.CapacityRange(required_bytes=-1)]),
    ("CreateVolume", create_request("v"), "url", [{"parameters": {}}, {"parameters": {"url": "no url"}}]),
    ("CreateVolume", create_request("v"), "mutable_parameters", [{"mutable_parameters": {"uid": "1"}}]),
    ("CreateVolume", create_request("v"), "volume_content_source", [csi_pb2.VolumeContentSource()]),
    ("DeleteVolume", csi_pb2.DeleteVolumeRequest(), "volume_id", [*IDS]),
    ("ValidateVolumeCapabilities", VALIDATION, "volume_id", [*IDS]),
    ("ValidateVolumeCapabilities", VALIDATION, "volume_capabilities", [[]]),
    ("ListVolumes", csi_pb2.ListVolumesRequest(), "max_entries", [-1]),
    ("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest(), "volume_id", [*IDS]),
    ("ControllerModifyVolume", CHANGE, "volume_id", [*IDS]),
    ("ControllerModifyVolume", CHANGE, "mutable_parameters", [{}, {"uid": "1"}]),
    ("ControllerModifyVolume", CHANGE, "warmup", [{"mutable_parameters": {"warmup": LONG}}]),
    ("ControllerExpandVolume", EXPANSION, "volume_id", [*IDS]),
    ("ControllerExpandVolume", EXPANSION, "capacity_range", [None, csi_pb2.CapacityRange()]),
    ("ControllerExpandVolume", EXPANSION, "capacity_range", [csi_pb2.CapacityRange(limit_bytes=-1)]),
    ("ControllerExpandVolume", EXPANSION, "volume_capability", [block_capability()]),
    ("CreateSnapshot", SNAPSHOT, "name", [*IDS]),
    ("CreateSnapshot", SNAPSHOT, "source_volume_id", [*IDS]),
    ("CreateSnapshot", SNAPSHOT, "parameters", [{"colour": "blue"}]),
    ("CreateSnapshot", SNAPSHOT, "versions", [{"parameters": {"versions": "some"}}]),
    ("DeleteSnapshot", csi_pb2.DeleteSnapshotRequest(), "snapshot_id", [*IDS]),
    ("GetSnapshot", csi_pb2.GetSnapshotRequest(), "snapshot_id", [*IDS]),
    ("ListSnapshots", csi_pb2.ListSnapshotsRequest(), "snapshot_id", [LONG, CONTROL]),
    ("ListSnapshots", csi_pb2.ListSnapshotsRequest(), "source_volume_id", [LONG, CONTROL]),
    ("ListSnapshots", csi_pb2.ListSnapshotsRequest(), "max_entries", [-1]),
    ("CreateVolumeGroupSnapshot", GROUP, "name", [*IDS]),
    ("CreateVolumeGroupSnapshot", GROUP, "source_volume_ids", [[], [""], [LONG], [CONTROL]]),
    ("CreateVolumeGroupSnapshot", GROUP, "parameters", [{"colour": "blue"}]),
    ("DeleteVolumeGroupSnapshot", csi_pb2.DeleteVolumeGroupSnapshotRequest(), "group_snapshot_id", [*IDS]),
    ("GetVolumeGroupSnapshot", csi_pb2.GetVolumeGroupSnapshotRequest(), "group_snapshot_id", [*IDS]),
]
"""Call, a request that is in order, the field that the refusal names, and values that are refused: of that field, or
those of several fields in a dictionary by their names."""


@pytest.mark.promise("S332")
@pytest.mark.parametrize(
    ("call", "request_in_order", "field", "value"),
    [
        pytest.param(call, request, field, value, id=f"{call}-{field}-{number}")
        for call, request, field, values in FIELDS
        for number, value in enumerate(values)
    ],
)
def test_each_wrong_field_of_the_controller_is_named_and_nothing_changes(
    driver: CsiClient, volumes: VolumesInMemory, call: str, request_in_order: Any, field: str, value: Any
) -> None:
    changed = type(request_in_order)()
    changed.CopyFrom(request_in_order)
    several = isinstance(value, dict) and next(iter(value), None) in changed.DESCRIPTOR.fields_by_name
    for name, given in (value if several else {field: value}).items():
        changed.ClearField(name)
        if given is not None:
            changed.MergeFrom(type(changed)(**{name: given}))
    before = volumes.blobs.names()
    service = driver.groups if "Group" in call else driver.controller
    with refused(Code.INVALID_ARGUMENT) as found:
        getattr(service, call)(changed, timeout=30)
    assert field in found[0].message.partition(" ")[0]
    assert volumes.blobs.names() == before


@pytest.mark.promise("S332")
@pytest.mark.parametrize(
    ("call", "request_of_none"),
    [
        ("ControllerGetVolume", csi_pb2.ControllerGetVolumeRequest(volume_id="none")),
        ("ControllerModifyVolume", CHANGE),
        ("ControllerExpandVolume", EXPANSION),
        ("ValidateVolumeCapabilities", VALIDATION),
        ("CreateSnapshot", SNAPSHOT),
        ("GetSnapshot", csi_pb2.GetSnapshotRequest(snapshot_id="none")),
        ("CreateVolumeGroupSnapshot", GROUP),
        ("GetVolumeGroupSnapshot", csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id="none")),
    ],
)
def test_calls_for_what_does_not_exist_are_not_found(
    driver: CsiClient, volumes: VolumesInMemory, call: str, request_of_none: Any
) -> None:
    service = driver.groups if "Group" in call else driver.controller
    with refused(Code.NOT_FOUND):
        getattr(service, call)(request_of_none, timeout=30)
    assert volumes.blobs.names() == []


def test_deletions_of_what_does_not_exist_succeed(driver: CsiClient) -> None:
    driver.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id="none"))
    request = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id="none", snapshot_ids=["one"])
    driver.groups.DeleteVolumeGroupSnapshot(request)
