"""CSI GroupController: snapshots of several datasets, of one moment."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from csi_driver.csi.snapshot_calls import snapshot_message
from csi_driver.csi.snapshot_events import SnapshotEvents
from csi_driver.model.errors import MissingParameter
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.volumes.records import GroupRecord, SnapshotRecord
from csi_driver.volumes.volume_ids import check_id, group_id_of
from csi_driver.volumes.volume_snapshots import VolumeSnapshots, pin_mode

_Rpc = csi_pb2.GroupControllerServiceCapability.RPC


class GroupControllerService(csi_pb2_grpc.GroupControllerServicer):
    """Has no state but which groups have a call in flight."""

    def __init__(self, snapshots: VolumeSnapshots, events: SnapshotEvents | None = None) -> None:
        self._snapshots = snapshots
        self._events = events or SnapshotEvents()
        self._pending = VolumeClaims()

    def GroupControllerGetCapabilities(
        self, request: csi_pb2.GroupControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        kind = _Rpc(type=_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT)
        capability = csi_pb2.GroupControllerServiceCapability(rpc=kind)
        return csi_pb2.GroupControllerGetCapabilitiesResponse(capabilities=[capability])

    def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        group_id = group_id_of(request.name)
        volume_ids = _checked("source_volume_ids", request.source_volume_ids)
        mode = pin_mode(request.parameters)
        with self._pending.claim(group_id):
            made = self._snapshots.create_group(request.name, volume_ids, mode, dict(request.secrets))
        self._events.made(request.name, request.parameters, made[1])
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=_message(*made))

    def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        check_id("group_snapshot_id", request.group_snapshot_id)
        snapshot_ids = tuple(request.snapshot_ids)
        with self._pending.claim(request.group_snapshot_id):
            self._snapshots.delete_group(request.group_snapshot_id, snapshot_ids)
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        check_id("group_snapshot_id", request.group_snapshot_id)
        snapshot_ids = tuple(request.snapshot_ids)
        found = self._snapshots.group(request.group_snapshot_id, snapshot_ids)
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=_message(*found))


def _checked(field: str, ids: Iterable[str]) -> tuple[str, ...]:
    """Raises MissingParameter, InvalidParameter."""
    found = tuple(ids)
    if not found:
        raise MissingParameter(field)
    for text in found:
        check_id(field, text)
    return found


def _message(group: GroupRecord, members: list[SnapshotRecord]) -> csi_pb2.VolumeGroupSnapshot:
    taken = Timestamp()
    taken.FromDatetime(group.taken)
    return csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=group.group_id,
        snapshots=map(snapshot_message, members),
        creation_time=taken,
        ready_to_use=True,
    )
