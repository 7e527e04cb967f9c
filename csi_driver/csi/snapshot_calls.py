"""The calls of the CSI Controller for snapshots."""

from __future__ import annotations

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from csi_driver.csi.snapshot_events import SnapshotEvents
from csi_driver.model.errors import SnapshotNotFound
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.volumes.records import SnapshotRecord
from csi_driver.volumes.volume_ids import check_id, snapshot_id_of
from csi_driver.volumes.volume_snapshots import VolumeSnapshots, pin_mode


class SnapshotCalls(csi_pb2_grpc.ControllerServicer):
    """A part of ``ControllerService``."""

    _snapshots: VolumeSnapshots
    _snapshot_events: SnapshotEvents
    _pending: VolumeClaims

    def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        snapshot_id = snapshot_id_of(request.name)
        check_id("source_volume_id", request.source_volume_id)
        mode = pin_mode(request.parameters)
        with self._pending.claim(snapshot_id):
            record = self._snapshots.create(request.name, request.source_volume_id, mode, dict(request.secrets))
        self._snapshot_events.made(request.name, request.parameters, [record])
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot_message(record))

    def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteSnapshotResponse:
        check_id("snapshot_id", request.snapshot_id)
        with self._pending.claim(request.snapshot_id):
            self._snapshots.delete(request.snapshot_id)
        return csi_pb2.DeleteSnapshotResponse()

    def GetSnapshot(
        self, request: csi_pb2.GetSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetSnapshotResponse:
        check_id("snapshot_id", request.snapshot_id)
        record = self._snapshots.get(request.snapshot_id)
        if record is None:
            raise SnapshotNotFound(f"snapshot_id: there is no snapshot {request.snapshot_id!r}")
        return csi_pb2.GetSnapshotResponse(snapshot=snapshot_message(record))

    def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListSnapshotsResponse:
        """A snapshot or volume that does not exist has no entries, and is no error."""
        for field in ("snapshot_id", "source_volume_id"):
            if getattr(request, field):
                check_id(field, getattr(request, field))
        if request.snapshot_id:
            record = self._snapshots.get(request.snapshot_id)
            source = request.source_volume_id
            found = [] if record is None or (source and source != record.source_volume_id) else [record]
            return csi_pb2.ListSnapshotsResponse(entries=map(_entry, found))
        page = self._snapshots.page(
            most=request.max_entries, token=request.starting_token, volume_id=request.source_volume_id
        )
        return csi_pb2.ListSnapshotsResponse(entries=map(_entry, page.entries), next_token=page.next_token)


def snapshot_message(record: SnapshotRecord) -> csi_pb2.Snapshot:
    """A snapshot is ready when it exists: it is a list of objects, which the store has already."""
    taken = Timestamp()
    taken.FromDatetime(record.taken)
    return csi_pb2.Snapshot(
        size_bytes=record.total_bytes,
        snapshot_id=record.id,
        source_volume_id=record.source_volume_id,
        creation_time=taken,
        ready_to_use=True,
        group_snapshot_id=record.group_id,
    )


def _entry(record: SnapshotRecord) -> csi_pb2.ListSnapshotsResponse.Entry:
    return csi_pb2.ListSnapshotsResponse.Entry(snapshot=snapshot_message(record))
