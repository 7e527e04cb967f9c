"""Composition of ``hayloft controller``: Identity and Controller, in front of the registry."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from socket import gethostname
from typing import NamedTuple

import grpc

from csi_driver import telemetry
from csi_driver.catalog.arrow_alone import use_arrow_alone
from csi_driver.csi.claim_events import ClaimEvents
from csi_driver.csi.controller_service import ControllerService
from csi_driver.csi.group_controller_service import GroupControllerService
from csi_driver.csi.health_check_service import HealthCheckService
from csi_driver.csi.identity_service import IdentityService
from csi_driver.csi.snapshot_events import SnapshotEvents
from csi_driver.kubernetes.events import EventRecorder
from csi_driver.rpc.call_counts import CallCounts
from csi_driver.rpc.pb import csi_pb2_grpc, health_pb2_grpc
from csi_driver.rpc.socket_server import SocketServer, socket_path
from csi_driver.settings import CacheCapacity, ControllerSettings, PolicySettings, RegistrySettings
from csi_driver.volumes.dataset_lister import DatasetLister
from csi_driver.volumes.dataset_snapshots import SnapshotService
from csi_driver.volumes.dynamic_volumes import DynamicVolumes
from csi_driver.volumes.registry import open_registry
from csi_driver.volumes.volume_changes import VolumeChanges
from csi_driver.volumes.volume_snapshots import VolumeSnapshots
from csi_driver.wiring.claim_annotations import claim_annotations
from csi_driver.wiring.controller_directory import controller_directory
from csi_driver.wiring.core_files import keep_no_core_files
from csi_driver.wiring.event_reporting import sending_events
from csi_driver.wiring.health_pages import serving_health
from csi_driver.wiring.listing_processes import ListingProcesses
from csi_driver.wiring.registry_check import check_registry
from csi_driver.wiring.shutdown import wait_for_stop
from csi_driver.wiring.span_export import exporting_spans
from csi_driver.wiring.version import hayloft_version

logger = logging.getLogger(__name__)

GRACE_S = 10.0
"""Time for calls in flight at shutdown; later ones are aborted, and external-provisioner retries them."""


def run(settings: ControllerSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises InvalidParameter, RegistryUnavailable."""
    keep_no_core_files()
    use_arrow_alone()
    identity = IdentityService(hayloft_version(), healthy=lambda: server.require_own_socket())
    policy = settings.policy.protecting(settings.registry)
    with (
        controller_directory(f"{settings.endpoint} {settings.registry.location}") as work,
        closing(ListingProcesses(settings.listing, policy)) as lister,
        ExitStack() as stack,
    ):
        lister.start()  # first: it forks, while this process has one thread
        stack.enter_context(exporting_spans("controller", os.environ))
        recorder = stack.enter_context(sending_events(gethostname()))
        capacities = settings.cache_capacities
        services = controller_services(settings.registry, policy, lister, work, capacities, recorder)

        def register(server: grpc.Server) -> None:
            csi_pb2_grpc.add_IdentityServicer_to_server(identity, server)
            services.add_to(server)
            health_pb2_grpc.add_HealthServicer_to_server(HealthCheckService(identity.require_ready), server)

        calls = CallCounts()
        server = SocketServer(socket_path(settings.endpoint), (register,), counts=calls)
        stack.enter_context(
            serving_health(settings.health_port, identity.require_healthy, identity.require_ready, calls)
        )
        server.start()
        logger.info("ready", extra=telemetry.fields(endpoint=settings.endpoint, registry=settings.registry.location))
        try:
            wait_for_stop()
        finally:
            server.stop(GRACE_S)


class ControllerServices(NamedTuple):
    """The two services of the controller."""

    controller: ControllerService
    groups: GroupControllerService

    def add_to(self, server: grpc.Server) -> None:
        csi_pb2_grpc.add_ControllerServicer_to_server(self.controller, server)
        csi_pb2_grpc.add_GroupControllerServicer_to_server(self.groups, server)


def controller_services(
    registry: RegistrySettings,
    policy: PolicySettings,
    lister: DatasetLister,
    work_directory: Path,
    capacities: Sequence[CacheCapacity] = (),
    recorder: EventRecorder | None = None,
) -> ControllerServices:
    """Manifests are built in ``work_directory`` before they are stored in the registry, which ``policy`` protects.
    ``recorder`` takes events; None: outside of a cluster."""
    opened = open_registry(registry)
    check_registry(opened, registry.location)
    manifests = SnapshotService(opened, lister, work_directory)
    snapshots = VolumeSnapshots(opened, manifests, policy)
    changes = VolumeChanges(opened, manifests, policy)
    volumes = DynamicVolumes(opened, manifests)
    events, of_snapshots = ClaimEvents(recorder), SnapshotEvents(recorder)
    controller = ControllerService(
        volumes, snapshots, changes, policy, capacities, claim_annotations(), events, of_snapshots
    )
    return ControllerServices(controller, GroupControllerService(snapshots, of_snapshots))
