"""CSI Identity: name, version and readiness of this driver."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.model.errors import DaemonUnavailable
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc


class IdentityService(csi_pb2_grpc.IdentityServicer):
    """Each probe calls ``healthy``, which raises SocketTaken, and ``ready``, which raises DaemonUnavailable while the
    daemon does not answer. Then the plugin is "not ready", not "unhealthy": a restart of the node plugin would not
    bring the daemon back."""

    def __init__(
        self, version: str, ready: Callable[[], object] | None = None, healthy: Callable[[], object] | None = None
    ) -> None:
        self._version = version
        self._ready = ready
        self._healthy = healthy

    def GetPluginInfo(
        self, request: csi_pb2.GetPluginInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=self._version)

    def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        capability, kind = csi_pb2.PluginCapability, csi_pb2.PluginCapability.Service
        expansion = capability.VolumeExpansion(type=capability.VolumeExpansion.ONLINE)
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[
                capability(service=kind(type=kind.CONTROLLER_SERVICE)),
                capability(service=kind(type=kind.GROUP_CONTROLLER_SERVICE)),
                capability(volume_expansion=expansion),
            ]
        )

    def Probe(self, request: csi_pb2.ProbeRequest, context: grpc.ServicerContext) -> csi_pb2.ProbeResponse:
        self.require_healthy()
        try:
            self.require_ready()
        except DaemonUnavailable:
            return csi_pb2.ProbeResponse(ready=BoolValue(value=False))
        return csi_pb2.ProbeResponse(ready=BoolValue(value=True))

    def require_healthy(self) -> None:
        """Raises SocketTaken."""
        if self._healthy is not None:
            self._healthy()

    def require_ready(self) -> None:
        """Raises SocketTaken, DaemonUnavailable."""
        self.require_healthy()
        if self._ready is not None:
            self._ready()
