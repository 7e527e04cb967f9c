"""The calls of the CSI Controller that change a volume."""

from __future__ import annotations

import grpc

from csi_driver.csi.capabilities import check_capability
from csi_driver.csi.requested_capacity import checked_capacity
from csi_driver.model.errors import MissingParameter
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.volumes.volume_changes import VolumeChanges
from csi_driver.volumes.volume_ids import check_id


class ChangeCalls(csi_pb2_grpc.ControllerServicer):
    """A part of ``ControllerService``."""

    _changes: VolumeChanges
    _pending: VolumeClaims

    def ControllerModifyVolume(
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        check_id("volume_id", request.volume_id)
        if not request.mutable_parameters:
            raise MissingParameter("mutable_parameters")
        with self._pending.claim(request.volume_id):
            self._changes.modify(request.volume_id, dict(request.mutable_parameters), dict(request.secrets))
        return csi_pb2.ControllerModifyVolumeResponse()

    def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """A new mount reserves what is recorded by then. Kubelet is not asked for NodeExpandVolume: for a pod with
        ``readOnly: true`` it does nothing, and the claim would wait for it for ever."""
        check_id("volume_id", request.volume_id)
        if not request.HasField("capacity_range"):
            raise MissingParameter("capacity_range")
        capacity = checked_capacity(request.capacity_range)
        if not capacity.required_bytes and not capacity.limit_bytes:
            raise MissingParameter("capacity_range.required_bytes")
        if request.HasField("volume_capability"):
            check_capability(request.volume_capability)
        with self._pending.claim(request.volume_id):
            record = self._changes.expand(request.volume_id, capacity.required_bytes, capacity.limit_bytes)
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=record.capacity_bytes)
