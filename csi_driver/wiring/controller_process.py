"""Composition of ``hayloft controller``: Identity and Controller, in front of the registry."""

from __future__ import annotations

import logging
import tempfile
from contextlib import closing
from pathlib import Path

import grpc

from csi_driver import telemetry
from csi_driver.csi.controller_service import ControllerService
from csi_driver.csi.identity_service import IdentityService
from csi_driver.rpc.pb import csi_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer, socket_path
from csi_driver.settings import ControllerSettings, PolicySettings, RegistrySettings
from csi_driver.volumes.dataset_lister import DatasetLister
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.dynamic_volumes import DynamicVolumes
from csi_driver.volumes.registry import open_registry
from csi_driver.wiring.listing_processes import ListingProcesses
from csi_driver.wiring.registry_check import check_registry
from csi_driver.wiring.shutdown import wait_for_stop
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""Time for calls in flight at shutdown; later ones are aborted, and external-provisioner retries them."""


def run(settings: ControllerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidParameter, RegistryUnavailable."""
    identity = IdentityService(hayloft_version(), healthy=lambda: server.require_own_socket())
    policy = settings.policy.protecting(settings.registry)
    with (
        tempfile.TemporaryDirectory(prefix="hayloft-controller-") as work,
        closing(ListingProcesses(settings.listing, policy)) as lister,
    ):
        lister.start()
        controller = controller_service(settings.registry, policy, lister, Path(work))

        def register(server: grpc.Server) -> None:
            csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
            csi_pb2_grpc.add_ControllerServicer_to_server(controller, server)

        server = SocketServer(socket_path(settings.endpoint), (register,))
        server.start()
        logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, registry=settings.registry.location))
        try:
            wait_for_stop()
        finally:
            server.stop(GRACE_S)


def controller_service(
    registry: RegistrySettings, policy: PolicySettings, lister: DatasetLister, work_directory: Path
) -> ControllerService:
    """Manifests are built in ``work_directory`` before they are stored in the registry, which ``policy`` protects."""
    opened = open_registry(registry)
    check_registry(opened, registry.location)
    snapshots = SnapshotService(opened, lister, work_directory)
    return ControllerService(DynamicVolumes(opened, snapshots), policy)
