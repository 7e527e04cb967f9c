"""Registers the driver with kubelet: serves the registration API on a socket in kubelet's directory, and makes that
socket anew while kubelet refuses the driver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_driver.csi.registration_service import RegistrationService
from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.rpc.pb import plugin_registration_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer

SOCKET_NAME = f"{DRIVER_NAME}-reg.sock"
"""That of node-driver-registrar: where both are started, one of them has the path, and kubelet sees one plugin."""

RETRY_S = 30.0
"""Kubelet retries by itself, after 1, 2, 3, 5, 9, 17 s and so on, up to two minutes. A new socket it asks within 2 s.
"""

_GRACE_S = 2.0


class NodeRegistration:
    """From ``bind`` on kubelet finds the driver; it is answered from ``serving`` on."""

    def __init__(self, directory: Path, endpoint: str, retry_s: float = RETRY_S) -> None:
        """``endpoint``: the path of the CSI socket on the host."""
        self.service = RegistrationService(endpoint)
        self._retry_s = retry_s
        self._ending = threading.Event()

        def register(server: object) -> None:
            plugin_registration_pb2_grpc.add_RegistrationServicer_to_server(self.service, server)

        self._server = SocketServer(directory / SOCKET_NAME, (register,), "--registration-dir", patient=True)

    def bind(self) -> None:
        """To be called while no other thread makes files. Raises InvalidParameter."""
        self._server.bind()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """At the end kubelet unregisters the driver: its socket is gone."""
        thread = threading.Thread(target=self._retry, name="registration", daemon=True)
        self._server.start()
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self.service.refused.set()  # wakes the thread
            thread.join()
            self._server.stop(_GRACE_S)

    def _retry(self) -> None:
        while self.service.refused.wait() and not self._ending.wait(self._retry_s):
            if self.service.refused.is_set():
                self.service.refused.clear()  # until kubelet answers again
                self._server.announce()
