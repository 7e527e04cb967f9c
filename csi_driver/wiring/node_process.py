"""Composition of ``hayloft node``: Identity and Node on kubelet's socket, in front of the daemon of this node."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from csi_driver import telemetry
from csi_driver.csi.health_check_service import HealthCheckService
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.node_service import NodeConfiguration, NodeService
from csi_driver.csi.pod_events import PodEvents
from csi_driver.daemon.daemon_client import DaemonClient
from csi_driver.kubernetes.api_server import ApiServer
from csi_driver.kubernetes.events import EventRecorder
from csi_driver.model.driver_name import DRIVER_NAME
from csi_driver.model.errors import DaemonUnavailable, Interrupted, InvalidParameter
from csi_driver.rpc import callers
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.rpc.pb import csi_pb2_grpc, health_pb2_grpc
from csi_driver.rpc.socket_file import wait_until_free
from csi_driver.rpc.socket_server import SocketServer, socket_path
from csi_driver.wiring.core_files import keep_no_core_files
from csi_driver.wiring.event_reporting import polling, sending_events
from csi_driver.wiring.health_pages import serving_health
from csi_driver.wiring.node_readiness import NodeReadiness
from csi_driver.wiring.node_registration import NodeRegistration
from csi_driver.wiring.shutdown import wait_for_stop
from csi_driver.wiring.span_export import exporting_spans
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""Time for calls in flight at shutdown; later ones are aborted, and kubelet retries them."""

LONGEST_NODE_ID = 256
"""In bytes; by CSI."""

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
    registration_directory: Path | None = None
    """Kubelet's ``plugins_registry``; None: another process registers the driver."""
    registration_endpoint: str = ""
    """Where the host has the socket of ``endpoint``; empty: at the same path."""
    topology: Mapping[str, str] = field(default_factory=dict)
    most_volumes: int = 0
    """0: no limit."""
    health_port: int = 0
    """0: none."""
    standby: bool = False
    """Wait for the end of another node plugin that serves at the endpoint, and take over from it."""
    remove_startup_taint: bool = False
    ready_condition: bool = False
    """What becomes of the Node with each registration: see ``NodeReadiness``."""


def run(settings: NodeSettings) -> None:
    """Serves until SIGTERM or SIGINT. Leaves all mounts as they are. Raises InvalidParameter for a bad endpoint, node
    id, directory or port, and for a change of the Node that cannot be made here."""
    socket = socket_path(settings.endpoint)
    if not 0 < len(settings.node_id.encode()) <= LONGEST_NODE_ID:
        raise InvalidParameter("--node-id", settings.node_id, f"a name of 1 to {LONGEST_NODE_ID} bytes")
    keep_no_core_files()
    with exporting_spans("node", os.environ), sending_events(settings.node_id) as recorder:
        _run(settings, socket, recorder)


def _run(settings: NodeSettings, socket: Path, recorder: EventRecorder | None) -> None:
    daemon = DaemonClient(settings.daemon_socket)
    events = PodEvents(daemon, recorder)
    service = NodeService(node_configuration(settings), daemon, events)
    taken_over = threading.Event()
    """Until then the socket is that of another plugin, and this process is as healthy and ready as one can be beside
    it: the other one is ended only when this one is ready."""
    identity = IdentityService(
        hayloft_version(),
        service.health.require_daemon,
        healthy=lambda: server.require_own_socket() if taken_over.is_set() else None,
    )

    def register(server: grpc.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
        csi_pb2_grpc.add_NodeServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthCheckService(identity.require_ready), server)

    calls = CallCounts()
    server = SocketServer(socket, (register,), counts=calls)
    registration = _registration(settings, socket)
    readiness = _readiness(settings, registration, identity)
    with ExitStack() as stack:
        stack.callback(daemon.close)
        stack.enter_context(
            serving_health(settings.health_port, identity.require_healthy, identity.require_ready, calls)
        )
        if settings.standby:
            wait_until_free(socket)
        service.remove_empty_directories()
        if settings.kubelet_directory is not None and socket.is_relative_to(settings.kubelet_directory):
            socket.parent.mkdir(mode=0o750, exist_ok=True)
        if registration is not None:
            registration.bind()  # first: kubelet is answered when both serve
        server.start()
        taken_over.set()
        stack.callback(server.stop, GRACE_S)
        if registration is not None:
            stack.enter_context(registration.serving())
        if readiness is not None:
            stack.enter_context(readiness.following())
        logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, node_id=settings.node_id))
        with removing_leftovers(service), polling(events):
            wait_for_stop()


def _registration(settings: NodeSettings, socket: Path) -> NodeRegistration | None:
    if settings.registration_directory is None:
        return None
    return NodeRegistration(settings.registration_directory, settings.registration_endpoint or str(socket))


def _readiness(
    settings: NodeSettings, registration: NodeRegistration | None, identity: IdentityService
) -> NodeReadiness | None:
    """Raises InvalidParameter: a node that keeps its taint would never have a pod."""
    asked = [("--remove-startup-taint", settings.remove_startup_taint), ("--ready-condition", settings.ready_condition)]
    for flag, is_asked in asked:
        if is_asked and registration is None:
            raise InvalidParameter(flag, "true", "true together with --registration-dir")
    if registration is None or not any(is_asked for _, is_asked in asked):
        return None
    api = ApiServer.of_this_pod(os.environ)
    if api is None:
        flag = next(flag for flag, is_asked in asked if is_asked)
        raise InvalidParameter(flag, "true", "true in a pod with a token for the API server (nodes.startupTaint)")
    return NodeReadiness(
        api,
        settings.node_id,
        registration.service.accepted,
        identity.require_ready,
        remove_taint=settings.remove_startup_taint,
        report_condition=settings.ready_condition,
    )


def node_configuration(settings: NodeSettings) -> NodeConfiguration:
    """Inline volumes are staged in a directory that is mounted both on the host and in the daemon's container."""
    base = settings.daemon_socket.parent
    if settings.kubelet_directory is not None:
        base = Path(settings.kubelet_directory) / "plugins" / DRIVER_NAME
    return NodeConfiguration(
        settings.node_id, base / "inline", settings.kubelet_directory, settings.topology, settings.most_volumes
    )


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
