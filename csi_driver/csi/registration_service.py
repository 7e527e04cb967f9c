"""The plugin's side of its registration with kubelet.

Kubelet finds the socket of this service in its directory ``plugins_registry``, asks for name and endpoint, calls
NodeGetInfo there, and reports whether the driver is registered. It begins again when kubelet, or the socket, is new.
"""

from __future__ import annotations

import logging
import threading

import grpc

from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.rpc.pb import plugin_registration_pb2 as messages
from csi_driver.rpc.pb import plugin_registration_pb2_grpc
from csi_driver.telemetry import fields

logger = logging.getLogger(__name__)

_TYPE = "CSIPlugin"
_VERSIONS = ("1.0.0",)
"""What kubelet calls the versions of CSI 1: it refuses others."""

_LONGEST_REASON = 500


class RegistrationService(plugin_registration_pb2_grpc.RegistrationServicer):
    """May be used from any thread; ``_lock`` guards ``_registered``."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: the path of the CSI socket on the host."""
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._registered: bool | None = None
        self.refused = threading.Event()
        """Set while kubelet has refused the driver last."""
        self.accepted = threading.Event()
        """Set each time that kubelet has registered the driver; cleared by the thread that acts on it."""

    @property
    def is_registered(self) -> bool:
        """By the last answer of kubelet."""
        with self._lock:
            return self._registered is True

    def GetInfo(self, request: messages.InfoRequest, context: grpc.ServicerContext) -> messages.PluginInfo:
        return messages.PluginInfo(type=_TYPE, name=DRIVER_NAME, endpoint=self._endpoint, supported_versions=_VERSIONS)

    def NotifyRegistrationStatus(
        self, request: messages.RegistrationStatus, context: grpc.ServicerContext
    ) -> messages.RegistrationStatusResponse:
        with self._lock:
            before, self._registered = self._registered, request.plugin_registered
        if request.plugin_registered:
            self.refused.clear()
            self.accepted.set()
            if not before:
                logger.info("registered with kubelet", extra=fields(driver=DRIVER_NAME, endpoint=self._endpoint))
        else:
            self.refused.set()
            facts = fields(driver=DRIVER_NAME, endpoint=self._endpoint, error=request.error[:_LONGEST_REASON])
            logger.error("kubelet refuses to register the driver; it is announced again", extra=facts)
        return messages.RegistrationStatusResponse()
