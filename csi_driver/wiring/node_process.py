"""Composition of ``hayloft node``: Identity and Node on kubelet's socket, in front of the daemon of this node."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from csi_driver import telemetry
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.model.errors import DaemonUnavailable, Interrupted
from csi_driver.rpc import callers
from csi_driver.rpc.pb import csi_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer, socket_path
from csi_driver.wiring.shutdown import wait_for_stop
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""Time for calls in flight at shutdown; later ones are aborted, and kubelet retries them."""

_DAEMON_POLL_S = 2.0
_THREAD_END_S = 2.0


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """``hayloft node``. No class of ``settings.py``: pydantic would be a third of this process's memory."""

    endpoint: str
    node_id: str
    daemon_socket: Path
    kubelet_directory: Path | None = None
    """If set, staging and target paths must lie below it."""


def run(settings: NodeSettings) -> None:
    """Serves until SIGTERM or SIGINT. Leaves all mounts as they are. Raises InvalidParameter for a bad endpoint."""
    daemon = DaemonClient(settings.daemon_socket)
    service = NodeService(node_configuration(settings), daemon)
    identity = IdentityService(hayloft_version(), daemon.report, healthy=lambda: server.require_own_socket())

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        csi_pb2_grpc.add_NodeServicer_to_server(service, server)

    server = SocketServer(socket_path(settings.endpoint), (register,))
    service.remove_empty_directories()
    server.start()
    logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, node_id=settings.node_id))
    try:
        with removing_leftovers(service):
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


@contextmanager
def removing_leftovers(service: NodeService) -> Iterator[None]:
    """During the body, a thread waits for the daemon and then ends inline volumes that are published nowhere."""
    ending = threading.Event()
    caller = callers.Caller()

    def run() -> None:
        while not ending.is_set():
            try:
                with callers.working_for(caller):
                    service.unstage_unpublished()
            except Interrupted:
                return
            except DaemonUnavailable:
                ending.wait(_DAEMON_POLL_S)
            except Exception:
                logger.exception("unexpected error while inline volumes that are published nowhere are unstaged")
                return
            else:
                return

    thread = threading.Thread(target=run, name="leftovers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        caller.gone = True  # ends a call to the daemon that is in flight
        ending.set()
        thread.join(_THREAD_END_S)
