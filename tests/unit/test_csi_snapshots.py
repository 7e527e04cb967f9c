"""The calls of the controller for snapshots, groups of them, clones, changes and lists, as sidecars make them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.model.errors import RegistryUnavailable
from csi_driver.rpc.pb import csi_pb2
from csi_driver.settings import CacheCapacity, PolicySettings
from csi_driver.volumes.cache_capacity import capacity_for
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.records import ManifestReference, VolumeRecord
from tests.support.csi_calls import (
    DATASET_BYTES,
    URL,
    CsiClient,
    VolumesInMemory,
    block_capability,
    mount_capability,
    refused,
    serving,
)
from tests.support.data_planes import InMemoryDataPlane

Code = grpc.StatusCode
GIB = 1 << 30


@pytest.fixture
def volumes() -> VolumesInMemory:
    return VolumesInMemory()


@pytest.fixture
def driver(volumes: VolumesInMemory) -> Iterator[CsiClient]:
    home = Path(tempfile.mkdtemp(prefix="hayloft-"))
    with serving(home / "s", InMemoryDataPlane(), volumes) as client:
        yield client
    shutil.rmtree(home)


def snapshot(driver: CsiClient, name: str, volume_id: str, **parameters: str) -> csi_pb2.Snapshot:
    request = csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=volume_id, parameters=parameters)
    return driver.controller.CreateSnapshot(request, timeout=30).snapshot


def delete_snapshot(driver: CsiClient, snapshot_id: str) -> None:
    driver.controller.DeleteSnapshot(csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id), timeout=30)


def delete_volume(driver: CsiClient, volume_id: str) -> None:
    driver.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume_id), timeout=30)


def of_snapshot(snapshot_id: str) -> csi_pb2.VolumeContentSource:
    source = csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id)
    return csi_pb2.VolumeContentSource(snapshot=source)


def of_volume(volume_id: str) -> csi_pb2.VolumeContentSource:
    return csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume_id))


def group(driver: CsiClient, name: str, *volume_ids: str, **parameters: str) -> csi_pb2.VolumeGroupSnapshot:
    request = csi_pb2.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volume_ids, parameters=parameters)
    return driver.groups.CreateVolumeGroupSnapshot(request, timeout=30).group_snapshot


def modify(driver: CsiClient, volume_id: str, **mutable: str) -> None:
    request = csi_pb2.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=mutable)
    driver.controller.ControllerModifyVolume(request, timeout=30)


def expand(driver: CsiClient, volume_id: str, **capacity: int) -> csi_pb2.ControllerExpandVolumeResponse:
    capacity_range = csi_pb2.CapacityRange(**capacity)
    request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume_id, capacity_range=capacity_range)
    return driver.controller.ControllerExpandVolume(request, timeout=30)


# -- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S323")
def test_snapshots_and_their_manifests_outlive_the_volume_and_end_with_the_last_that_needs_them(
    driver: CsiClient, volumes: VolumesInMemory
) -> None:
    volume = driver.create("v")
    made = snapshot(driver, "s", volume.volume_id)
    assert (made.source_volume_id, made.size_bytes, made.ready_to_use) == (volume.volume_id, DATASET_BYTES, True)
    assert made.creation_time.seconds > 0
    delete_volume(driver, volume.volume_id)
    restored = driver.create("r", volume_content_source=of_snapshot(made.snapshot_id))
    assert restored.content_source.snapshot.snapshot_id == made.snapshot_id
    delete_snapshot(driver, made.snapshot_id)
    delete_snapshot(driver, made.snapshot_id)
    assert len(volumes.registry.manifests()) == 1  # the volume needs it
    delete_volume(driver, restored.volume_id)
    assert volumes.blobs.names() == []


@pytest.mark.promise("S324")
def test_a_repeated_snapshot_is_the_same_and_another_of_its_name_is_refused(driver: CsiClient) -> None:
    one, other = driver.create("one").volume_id, driver.create("other").volume_id
    made = snapshot(driver, "s", one)
    assert snapshot(driver, "s", one) == made
    with refused(Code.ALREADY_EXISTS) as found:
        snapshot(driver, "s", other)
    assert one in found[0].message
    with refused(Code.ALREADY_EXISTS):
        snapshot(driver, "s", one, versions="off")


def test_the_record_of_a_snapshot_keeps_its_manifest_also_from_earlier_versions(
    driver: CsiClient, volumes: VolumesInMemory
) -> None:
    """They look at all records below ``volumes/``, and read of each what they know."""
    volume = driver.create("v")
    snapshot(driver, "s", volume.volume_id)
    (key,) = [key for key in volumes.blobs.names() if "snapshot=" in key]
    assert key.startswith("volumes/")
    blob = volumes.blobs.get(key)
    assert blob is not None
    earlier = {name for name, field in VolumeRecord.model_fields.items() if field.is_required()}
    assert earlier <= {*json.loads(blob[0])}
    assert ManifestReference.model_validate_json(blob[0]).snapshot_id in volumes.registry.manifests()


@pytest.mark.promise("S325")
def test_pages_of_snapshots_and_volumes(driver: CsiClient) -> None:
    ids = [driver.create(f"v-{number}").volume_id for number in range(5)]
    made = [snapshot(driver, f"s-{number}", ids[number % 2]).snapshot_id for number in range(5)]

    def snapshots(**fields: Any) -> csi_pb2.ListSnapshotsResponse:
        return driver.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest(**fields))

    def pages(ask: Callable[..., Any], id_of: Callable[[Any], str], **fields: Any) -> list[list[str]]:
        found, token = [], ""
        while True:
            answer = ask(max_entries=2, starting_token=token, **fields)
            found.append([id_of(entry) for entry in answer.entries])
            token = answer.next_token
            if not token:
                return found

    found = pages(snapshots, lambda entry: entry.snapshot.snapshot_id)
    assert [len(page) for page in found] == [2, 2, 1]
    assert sorted(chain(*found)) == sorted(made)
    of_one = pages(snapshots, lambda entry: entry.snapshot.snapshot_id, source_volume_id=ids[0])
    assert sorted(chain(*of_one)) == sorted(made[::2])
    assert [entry.snapshot.snapshot_id for entry in snapshots(snapshot_id=made[0]).entries] == [made[0]]
    assert not snapshots(snapshot_id=made[0], source_volume_id=ids[1]).entries
    assert not snapshots(snapshot_id="none").entries
    assert not snapshots(source_volume_id="none").entries

    def listed(**fields: Any) -> csi_pb2.ListVolumesResponse:
        return driver.controller.ListVolumes(csi_pb2.ListVolumesRequest(**fields))

    assert sorted(chain(*pages(listed, lambda entry: entry.volume.volume_id))) == sorted(ids)
    first = listed(max_entries=2)
    delete_volume(driver, first.entries[1].volume.volume_id)  # the one that the token names
    rest = [entry.volume.volume_id for entry in listed(starting_token=first.next_token).entries]
    assert sorted([*rest, *(entry.volume.volume_id for entry in first.entries)]) == sorted(ids)
    for ask in (snapshots, listed):
        for token in ("invalid-token", "after:../x", "after:"):
            with refused(Code.ABORTED) as refusal:
                ask(starting_token=token)
            assert "starting_token" in refusal[0].message
        with refused(Code.INVALID_ARGUMENT) as refusal:
            ask(max_entries=-1)
        assert "max_entries" in refusal[0].message


def test_get_volume_and_get_snapshot(driver: CsiClient) -> None:
    volume = driver.create("v")
    answer = driver.controller.ControllerGetVolume(csi_pb2.ControllerGetVolumeRequest(volume_id=volume.volume_id))
    assert answer.volume == volume
    assert answer.HasField("status")
    made = snapshot(driver, "s", volume.volume_id)
    request = csi_pb2.GetSnapshotRequest(snapshot_id=made.snapshot_id)
    assert driver.controller.GetSnapshot(request).snapshot == made
    delete_snapshot(driver, made.snapshot_id)
    with refused(Code.NOT_FOUND):
        driver.controller.GetSnapshot(request)
    with refused(Code.NOT_FOUND):  # a snapshot is no volume
        driver.controller.ControllerGetVolume(csi_pb2.ControllerGetVolumeRequest(volume_id=made.snapshot_id))


@pytest.mark.promise("S324")
def test_a_failed_snapshot_leaves_nothing(driver: CsiClient, volumes: VolumesInMemory) -> None:
    volume = driver.create("v")
    before = volumes.blobs.names()
    with refused(Code.FAILED_PRECONDITION) as found:
        snapshot(driver, "s", volume.volume_id, versions="required")
    assert "10 of 10 objects cannot be pinned" in found[0].message

    def fail(operation: str, key: str) -> None:
        if "snapshot=" in key and operation == "put_if_absent":
            raise RegistryUnavailable("no answer")

    volumes.blobs.before = fail
    with refused(Code.UNAVAILABLE):
        snapshot(driver, "s", volume.volume_id)
    volumes.blobs.before = None
    delete_snapshot(driver, "snapshot-unknown")  # the repetition of a deletion finds what no record names
    assert volumes.blobs.names() == before


# -- volumes of snapshots and volumes ---------------------------------------------------------------------------------


@pytest.mark.promise("S326")
def test_a_volume_of_a_source_shows_its_dataset_without_a_listing(driver: CsiClient, volumes: VolumesInMemory) -> None:
    parameters = {"url": URL, "include": "*", "uid": "1000"}
    volume = driver.create("v", parameters=parameters)
    made = snapshot(driver, "s", volume.volume_id)
    listings = len(volumes.listings)
    for name, source in (("r", of_snapshot(made.snapshot_id)), ("c", of_volume(volume.volume_id))):
        for given in ({}, {"url": URL}, parameters):
            copy = driver.create(f"{name}-{len(given)}", parameters=given, volume_content_source=source)
            assert copy.volume_context == {"url": URL, "include": "*", "uid": "1000"}
            assert copy.content_source == source
            assert copy.capacity_bytes == DATASET_BYTES
        assert driver.create(f"{name}-0", parameters={}, volume_content_source=source) == driver.create(
            f"{name}-0", parameters={"uid": "1000"}, volume_content_source=source
        )
        own = driver.create(f"{name}-own", parameters={"uid": "7"}, volume_content_source=source)
        assert own.volume_context["uid"] == "7"
        with refused(Code.INVALID_ARGUMENT) as found:
            driver.create(f"{name}-else", parameters={"url": "s3://other/"}, volume_content_source=source)
        assert found[0].message.startswith("url: 's3://other/'")
        with refused(Code.ALREADY_EXISTS):
            driver.create(f"{name}-0", parameters={"url": URL})
        with refused(Code.OUT_OF_RANGE):
            small = csi_pb2.CapacityRange(limit_bytes=DATASET_BYTES - 1)
            driver.create(f"{name}-small", parameters={}, volume_content_source=source, capacity_range=small)
    assert len(volumes.listings) == listings
    records = volumes.records
    by_source = {record.source_kind: record.snapshot_id for record in records.values()}
    assert by_source["volume"] == by_source[""] != by_source["snapshot"]


def test_a_source_that_does_not_exist_is_not_found(driver: CsiClient, volumes: VolumesInMemory) -> None:
    for source in (of_snapshot("none"), of_volume("none")):
        with refused(Code.NOT_FOUND) as found:
            driver.create("v", volume_content_source=source)
        assert "volume_content_source" in found[0].message
    for source in (of_snapshot(""), of_volume(""), csi_pb2.VolumeContentSource()):
        with refused(Code.INVALID_ARGUMENT) as found:
            driver.create("v", volume_content_source=source)
        assert "volume_content_source" in found[0].message
    assert volumes.blobs.names() == []


def test_a_snapshot_that_is_deleted_while_a_volume_is_made_of_it_keeps_its_manifest(
    driver: CsiClient, volumes: VolumesInMemory
) -> None:
    volume = driver.create("v")
    made = snapshot(driver, "s", volume.volume_id)

    def delete_first(operation: str, key: str) -> None:
        if operation == "put_if_absent" and "hayloft-r-" in key:
            volumes.blobs.before = None
            delete_snapshot(driver, made.snapshot_id)

    volumes.blobs.before = delete_first
    driver.create("r", volume_content_source=of_snapshot(made.snapshot_id))
    (record,) = [record for record in volumes.records.values() if record.name == "r"]
    assert record.snapshot_id in volumes.registry.manifests()


# -- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("S327")
def test_a_group_is_snapshots_of_all_its_volumes_which_end_together(
    driver: CsiClient, volumes: VolumesInMemory
) -> None:
    ids = [driver.create(f"v-{number}", parameters={"url": f"s3://b/{number}/"}).volume_id for number in range(3)]
    before = volumes.blobs.names()
    made = group(driver, "g", *ids)
    assert sorted(one.source_volume_id for one in made.snapshots) == sorted(ids)
    assert {one.group_snapshot_id for one in made.snapshots} == {made.group_snapshot_id}
    assert made.ready_to_use
    assert group(driver, "g", *reversed(ids)) == made
    members = [one.snapshot_id for one in made.snapshots]
    get = csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id=made.group_snapshot_id, snapshot_ids=members)
    assert driver.groups.GetVolumeGroupSnapshot(get).group_snapshot == made
    restored = driver.create("r", parameters={}, volume_content_source=of_snapshot(members[0]))
    with refused(Code.ALREADY_EXISTS):
        group(driver, "g", *ids[:2])
    with refused(Code.INVALID_ARGUMENT) as found:
        delete_snapshot(driver, members[0])
    assert made.group_snapshot_id in found[0].message
    delete = csi_pb2.DeleteVolumeGroupSnapshotRequest
    for wrong in (members[:2], []):
        with refused(Code.INVALID_ARGUMENT) as found:
            driver.groups.DeleteVolumeGroupSnapshot(
                delete(group_snapshot_id=made.group_snapshot_id, snapshot_ids=wrong)
            )
        assert "snapshot_ids" in found[0].message
    for _ in range(2):
        driver.groups.DeleteVolumeGroupSnapshot(delete(group_snapshot_id=made.group_snapshot_id, snapshot_ids=members))
    with refused(Code.NOT_FOUND):
        driver.groups.GetVolumeGroupSnapshot(get)
    delete_volume(driver, restored.volume_id)
    assert volumes.blobs.names() == before


@pytest.mark.promise("S327")
def test_a_group_of_which_one_volume_fails_leaves_no_snapshot(driver: CsiClient, volumes: VolumesInMemory) -> None:
    ids = [driver.create(f"v-{number}", parameters={"url": f"s3://b/{number}/"}).volume_id for number in range(2)]
    before = volumes.blobs.names()
    with refused(Code.NOT_FOUND):
        group(driver, "g", *ids, "zzz-none")
    assert volumes.blobs.names() == before


# -- changes ----------------------------------------------------------------------------------------------------------


def in_effect(volumes: VolumesInMemory, volume: csi_pb2.Volume) -> VolumeParameters:
    """What a node mounts the volume with."""
    return volumes.records[volume.volume_id].in_effect(VolumeParameters.parse(volume.volume_context))


@pytest.mark.promise("S328")
def test_parameters_are_changed_for_the_next_mount_and_others_stay(driver: CsiClient, volumes: VolumesInMemory) -> None:
    volume = driver.create("v", mutable_parameters={"warmup": "wait", "cacheReservation": "1GiB"})
    assert volume.volume_context == {"url": URL, "warmup": "wait", "cacheReservation": "1GiB"}
    for _ in range(2):
        modify(driver, volume.volume_id, warmup="background", warmupBandwidth="200MiB/s")
    found = in_effect(volumes, volume)
    assert (found.warmup, found.warmup_bandwidth_bytes, found.cache_reservation_bytes) == ("background", 200 << 20, GIB)
    modify(driver, volume.volume_id, warmup="", cacheReservation="2GiB")
    found = in_effect(volumes, volume)
    assert (found.warmup, found.warmup_bandwidth_bytes, found.cache_reservation_bytes) == ("none", 200 << 20, 2 * GIB)
    again = driver.create("v", mutable_parameters={"warmup": "wait", "cacheReservation": "1GiB"})
    assert again == volume, "the provisioner may repeat its call after a change"


@pytest.mark.promise("S328")
@pytest.mark.parametrize(
    ("mutable", "says"),
    [
        ({"uid": "7"}, "mutable_parameters: 'uid'"),
        ({"url": "s3://other/"}, "mutable_parameters: 'url'"),
        ({"warmup": "perhaps"}, "warmup: 'perhaps'"),
        ({"iops": "100"}, "iops: there is no such parameter"),
        ({"warmup": "wait", "cacheReservation": "much"}, "cacheReservation: 'much'"),
        ({"refresh": "x" * 129}, "refresh: "),
        ({}, "mutable_parameters: is required"),
    ],
)
def test_a_wrong_change_names_the_parameter_and_changes_nothing(
    driver: CsiClient, volumes: VolumesInMemory, mutable: dict[str, str], says: str
) -> None:
    volume = driver.create("v")
    before = volumes.records
    with refused(Code.INVALID_ARGUMENT) as found:
        modify(driver, volume.volume_id, **mutable)
    assert found[0].message.startswith(says)
    assert volumes.records == before
    if mutable:
        with refused(Code.INVALID_ARGUMENT) as found:
            driver.create("other", mutable_parameters=mutable)
        assert found[0].message.startswith(says)
        assert volumes.records == before


@pytest.mark.promise("S329")
def test_each_new_text_of_refresh_lists_the_dataset_once(driver: CsiClient, volumes: VolumesInMemory) -> None:
    volume = driver.create("v")
    first = volumes.records[volume.volume_id]
    for text in ("2026-12-01", "2026-12-01", "2026-12-02"):
        modify(driver, volume.volume_id, refresh=text)
    latest = volumes.records[volume.volume_id]
    assert latest.refreshed == "2026-12-02"
    assert latest.created > first.created
    clone = driver.create("c", volume_content_source=of_volume(volume.volume_id))
    with refused(Code.INVALID_ARGUMENT) as found:
        modify(driver, clone.volume_id, refresh="2026-12-03")
    assert found[0].message.startswith("refresh: ")


@pytest.mark.promise("S330")
def test_a_larger_claim_reserves_more_where_it_reserves_and_never_shrinks(
    driver: CsiClient, volumes: VolumesInMemory
) -> None:
    reserving = driver.create("reserving", parameters={"url": URL, "cacheReservation": "1000"})
    for _ in range(2):
        answer = expand(driver, reserving.volume_id, required_bytes=2 * GIB)
        assert (answer.capacity_bytes, answer.node_expansion_required) == (2 * GIB, False)
    assert in_effect(volumes, reserving).cache_reservation_bytes == DATASET_BYTES
    assert expand(driver, reserving.volume_id, required_bytes=GIB).capacity_bytes == 2 * GIB
    with refused(Code.OUT_OF_RANGE):
        expand(driver, reserving.volume_id, required_bytes=1, limit_bytes=GIB)
    plain = driver.create("plain")
    answer = expand(driver, plain.volume_id, required_bytes=GIB)
    assert (answer.capacity_bytes, answer.node_expansion_required) == (GIB, False)
    assert in_effect(volumes, plain).cache_reservation_bytes == 0
    assert driver.create("plain").capacity_bytes == GIB


def test_a_change_that_meets_another_one_is_not_lost(driver: CsiClient, volumes: VolumesInMemory) -> None:
    volume = driver.create("v", parameters={"url": URL, "cacheReservation": "1000"})
    other = volumes.services(PolicySettings()).controller  # another one, which knows nothing of this one's claims

    def overtake(operation: str, key: str) -> None:
        if operation == "put_if_match":
            volumes.blobs.before = None
            capacity = csi_pb2.CapacityRange(required_bytes=GIB)
            request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume.volume_id, capacity_range=capacity)
            other.ControllerExpandVolume(request, None)

    volumes.blobs.before = overtake
    modify(driver, volume.volume_id, warmup="wait")
    record = volumes.records[volume.volume_id]
    assert (record.expanded_bytes, record.modified["warmup"]) == (GIB, "wait")


@pytest.mark.promise("S331")
def test_a_call_for_what_another_call_works_on_is_aborted(driver: CsiClient, volumes: VolumesInMemory) -> None:
    volume = driver.create("v")
    refusals = []

    def again(operation: str, key: str) -> None:
        if operation == "put_if_absent" and "snapshot=" in key:
            volumes.blobs.before = None
            with refused(Code.ABORTED) as found:
                snapshot(driver, "s", volume.volume_id)
            refusals.append(found[0].message)

    volumes.blobs.before = again
    made = snapshot(driver, "s", volume.volume_id)
    assert made.snapshot_id in refusals[0]


@pytest.mark.promise("S336")
@pytest.mark.parametrize(
    ("segments", "expected"),
    [({}, 3), ({"zone": "a"}, 2), ({"zone": "a", "rack": "1"}, 3), ({"zone": "b"}, 1), ({"rack": "1"}, 1)],
)
def test_the_capacity_is_that_of_the_nodes_that_are_named_best(segments: dict[str, str], expected: int) -> None:
    capacities = [
        CacheCapacity(size_bytes=1),
        CacheCapacity(size_bytes=2, topology={"zone": "a"}),
        CacheCapacity(size_bytes=3, topology={"zone": "a", "rack": "1"}),
    ]
    assert capacity_for(capacities, segments) == expected
    assert capacity_for(capacities[1:2], {"zone": "b"}) == 0


@pytest.mark.promise("S336")
def test_capacity_is_claimed_where_the_operator_has_named_one(volumes: VolumesInMemory) -> None:
    controller = volumes.services(PolicySettings(), CacheCapacity(size_bytes=GIB)).controller
    claimed = controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest(), None).capabilities
    assert csi_pb2.ControllerServiceCapability.RPC.GET_CAPACITY in {one.rpc.type for one in claimed}
    answer = controller.GetCapacity(csi_pb2.GetCapacityRequest(), None)
    assert (answer.available_capacity, answer.maximum_volume_size.value) == (GIB, GIB)
    block = csi_pb2.GetCapacityRequest(volume_capabilities=[block_capability()])
    assert controller.GetCapacity(block, None).available_capacity == 0


def test_validate_confirms_mutable_parameters(driver: CsiClient) -> None:
    volume = driver.create("v")
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id,
        volume_capabilities=[mount_capability()],
        mutable_parameters={"warmup": "wait"},
    )
    assert driver.controller.ValidateVolumeCapabilities(request).confirmed.mutable_parameters == {"warmup": "wait"}
    request.mutable_parameters["uid"] = "1"
    answer = driver.controller.ValidateVolumeCapabilities(request)
    assert not answer.HasField("confirmed")
    assert "uid" in answer.message
