"""The call of the CSI Controller that reports capacity."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from csi_driver.csi.capabilities import refusal
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.settings import CacheCapacity
from csi_driver.volumes.cache_capacity import capacity_for


class CapacityCalls(csi_pb2_grpc.ControllerServicer):
    """A part of ``ControllerService``."""

    _capacities: Sequence[CacheCapacity]

    def GetCapacity(
        self, request: csi_pb2.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        """UNIMPLEMENTED unless the operator has named a capacity."""
        if not self._capacities:
            raise NotImplementedError
        refused = bool(request.volume_capabilities) and refusal(request.volume_capabilities) is not None
        size_bytes = 0 if refused else capacity_for(self._capacities, request.accessible_topology.segments)
        return csi_pb2.GetCapacityResponse(
            available_capacity=size_bytes, maximum_volume_size=Int64Value(value=size_bytes)
        )
