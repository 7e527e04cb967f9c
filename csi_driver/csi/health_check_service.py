"""The health-checking protocol of gRPC, on the CSI socket: what Probe says, for clients that know no CSI."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from csi_driver.model.errors import HayloftError, ServiceUnknown
from csi_driver.rpc.pb import health_pb2, health_pb2_grpc

_SERVICES = frozenset({"", "csi.v1.Identity", "csi.v1.Controller", "csi.v1.GroupController", "csi.v1.Node"})


class HealthCheckService(health_pb2_grpc.HealthServicer):
    """``ready`` raises a HayloftError while the process cannot do its work. Watch is not served; clients poll then."""

    def __init__(self, ready: Callable[[], object]) -> None:
        self._ready = ready

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in _SERVICES:
            raise ServiceUnknown(f"service: {request.service[:64]!r} is not served here; leave it empty for all")
        try:
            self._ready()
        except HayloftError:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
