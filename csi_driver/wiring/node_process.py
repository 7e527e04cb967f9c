"""Composition of ``hayloft node``: Identity and Node on kubelet's socket, in front of the daemon of this node."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from csi_driver import telemetry
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.rpc.pb import csi_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer, socket_path
from csi_driver.settings import DRIVER_NAME, NodeSettings
from csi_driver.wiring.shutdown import wait_for_stop
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""Time for calls in flight at shutdown; later ones are aborted, and kubelet retries them."""


def run(settings: NodeSettings) -> None:
    """Serves until SIGTERM or SIGINT. Leaves all mounts as they are. Raises InvalidParameter for a bad endpoint."""
    daemon = DaemonClient(settings.daemon_socket)
    service = NodeService(node_configuration(settings), daemon)
    identity = IdentityService(hayloft_version(), ready=daemon.report)

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        csi_pb2_grpc.add_NodeServicer_to_server(service, server)

    server = SocketServer(socket_path(settings.endpoint), (register,))
    server.start()
    logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, node_id=settings.node_id))
    try:
        wait_for_stop()
    finally:
        server.stop(GRACE_S)
        daemon.close()


def node_configuration(settings: NodeSettings) -> NodeConfiguration:
    """Inline volumes are staged in a directory that is mounted both on the host and in the daemon's container."""
    base = settings.daemon_socket.parent
    if settings.kubelet_directory is not None:
        base = Path(settings.kubelet_directory) / "plugins" / DRIVER_NAME
    return NodeConfiguration(settings.node_id, base / "inline", settings.kubelet_directory)
