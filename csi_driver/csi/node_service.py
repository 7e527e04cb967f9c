"""CSI Node: stages with the cache daemon, publishes by bind mounts. Every call reads the host's mount table; the only
state in this process is which volumes have a call in flight, and the daemon's last report of their health."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from csi_driver.csi.capabilities import check_capability
from csi_driver.csi.health_messages import storage_health, volume_condition, volume_health
from csi_driver.csi.inline_volumes import InlineVolumes
from csi_driver.csi.mount_requests import EPHEMERAL, POD_NAMESPACE, checked_capability, mount_request, volume_attributes
from csi_driver.csi.node_health import NodeHealth, VolumeState
from csi_driver.csi.own_mounts import Places, is_ours, require_ours_or_none
from csi_driver.csi.path_validation import checked_path
from csi_driver.csi.pod_events import PodEvents
from csi_driver.csi.publication import Publication
from csi_driver.csi.publication_pace import PublicationPace
from csi_driver.csi.requested_capacity import checked_capacity
from csi_driver.csi.staging import Staging
from csi_driver.model.errors import (
    CapacityOutOfRange,
    DaemonUnavailable,
    InvalidParameter,
    MissingParameter,
    NotMounted,
    ViewUnavailable,
    VolumeNotFound,
    WarmupFailed,
)
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc import callers
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.volumes.data_plane import DataPlane
from csi_driver.volumes.volume_ids import check_id

_Rpc = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES = (
    _Rpc.STAGE_UNSTAGE_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.VOLUME_CONDITION,  # of CSI 1.12 and before: kubelet up to 1.36
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.VOLUME_MOUNT_GROUP,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.GET_STORAGE_HEALTH,
)


@dataclass(frozen=True, slots=True)
class NodeConfiguration:
    """The part of the settings that the node service uses."""

    node_id: str
    inline_directory: Path
    """Where inline volumes are staged; in a cluster below kubelet's directory, so that the host sees the mounts."""
    kubelet_directory: Path | None = None
    topology: Mapping[str, str] = field(default_factory=dict)
    """Where the node is: segments such as zone and region, which must be those of the Node's labels."""
    most_volumes: int = 0
    """0: no limit."""


class NodeService(csi_pb2_grpc.NodeServicer):
    """Every call is idempotent: kubelet may repeat it after any crash, and while another call for the volume runs."""

    def __init__(
        self, configuration: NodeConfiguration, data_plane: DataPlane, events: PodEvents | None = None
    ) -> None:
        self._configuration = configuration
        self._events = events or PodEvents(data_plane)
        # Links are followed once, here. In the paths of requests none is followed below kubelet's directory.
        kubelet = configuration.kubelet_directory
        self._places = Places(
            Path(os.path.realpath(configuration.inline_directory)),
            None if kubelet is None else Path(os.path.realpath(kubelet)),
        )
        self._data_plane = data_plane
        self._staging = Staging(data_plane)
        self._inline = InlineVolumes(data_plane, self._staging, self._places)
        self._publication = Publication(data_plane, self._staging, self._places)
        self.health = NodeHealth(data_plane)
        self._pending = VolumeClaims()
        self._pace = PublicationPace()

    def remove_empty_directories(self) -> None:
        """Of inline volumes that are not mounted. To be called before calls are served."""
        self._inline.remove_empty_directories()

    def unstage_unpublished(self) -> None:
        """Ends inline volumes that are published nowhere. Calls may be served meanwhile. Raises DaemonUnavailable."""
        self._inline.unstage_unpublished(self._pending.claim)

    # -- staging ------------------------------------------------------------------------------------------------------

    def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        check_id("volume_id", request.volume_id)
        staging = self._path("staging_target_path", request.staging_target_path)
        capability = checked_capability(request)
        attributes = volume_attributes(request.volume_context, capability)
        with self._pending.claim(request.volume_id):
            self._staging.stage(mount_request(request, staging, attributes))
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        check_id("volume_id", request.volume_id)
        staging = self._path("staging_target_path", request.staging_target_path)
        with self._pending.claim(request.volume_id):
            self._staging.unstage(request.volume_id, staging)
        return csi_pb2.NodeUnstageVolumeResponse()

    # -- publishing ---------------------------------------------------------------------------------------------------

    def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        check_id("volume_id", request.volume_id)
        target = self._path("target_path", request.target_path)
        capability = checked_capability(request)
        inline = request.volume_context.get(EPHEMERAL) == "true"
        staging = self._inline.path(request.volume_id) if inline else self._staging_of(request)
        pace = self._pace.call(request.volume_context.get(POD_NAMESPACE, "")) if inline else nullcontext()
        with pace, self._pending.claim(request.volume_id):
            published = MountTable.read().at(target)
            republished = published is not None and is_ours(published)
            if republished:
                callers.note_repeat()
            if inline:
                attributes = volume_attributes(request.volume_context, capability)
                self._inline.stage(mount_request(request, staging, attributes, republished=republished))
            else:
                self._publication.require_staged(request.volume_id, staging)
                self._publication.require_single(request, staging, target)
                self._publication.require_served(request, staging, capability)
            try:
                self._publication.publish(request, staging, target)
            except (InvalidParameter, ViewUnavailable, WarmupFailed):
                if inline:  # kubelet does not unpublish a volume after a permanent refusal
                    self._inline.unstage(request.volume_id)
                raise
        self._events.published(request)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        check_id("volume_id", request.volume_id)
        target = self._path("target_path", request.target_path)
        with self._pending.claim(request.volume_id):
            require_ours_or_none(target, views=True)
            with suppress(DaemonUnavailable):  # the next daemon removes views that are mounted nowhere
                self._data_plane.unpublish(request.volume_id, os.fspath(target))
            bind_mounts.unmount(target)
            bind_mounts.remove_mount_point(target, file_or_link=True)
            self._inline.unstage(request.volume_id)
        self._events.unpublished(request.target_path)
        return csi_pb2.NodeUnpublishVolumeResponse()

    # -- growing ------------------------------------------------------------------------------------------------------

    def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """A dataset does not grow: the size that a claim asks for is what its volume may reserve of the cache, where it
        reserves something. A smaller size than before changes nothing."""
        check_id("volume_id", request.volume_id)
        shown = self._mount_at("volume_path", request.volume_path)
        if request.HasField("volume_capability"):
            check_capability(request.volume_capability)
        required_bytes, limit_bytes = checked_capacity(request.capacity_range)
        with self._pending.claim(request.volume_id):
            self.health.of_volume(request.volume_id, shown)  # raises if the path shows another volume
            report = self._data_plane.volume(request.volume_id)
            if 0 < limit_bytes < report.reserved_bytes:
                raise CapacityOutOfRange(
                    f"capacity_range: limit_bytes ({limit_bytes}) is less than the {report.reserved_bytes} bytes of "
                    f"the cache that volume {request.volume_id} has reserved; a reservation ends with the mount"
                )
            if report.reserved_bytes and required_bytes > report.reserved_bytes:
                report = self._data_plane.reserve(request.volume_id, required_bytes)
        size_bytes = max(required_bytes, report.reserved_bytes, report.total_bytes)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=min(size_bytes, limit_bytes or size_bytes))

    # -- queries ------------------------------------------------------------------------------------------------------

    def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        check_id("volume_id", request.volume_id)
        state = self.health.of_volume(request.volume_id, self._mount_at("volume_path", request.volume_path))
        return _stats(state)

    def NodeGetVolumeHealth(
        self, request: csi_pb2.NodeGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        check_id("volume_id", request.volume_id)
        if path := request.volume_publish_path:
            state = self.health.of_volume(request.volume_id, self._mount_at("volume_publish_path", path))
        elif staging := request.staging_target_path:
            state = self.health.of_volume(request.volume_id, self._mount_at("staging_target_path", staging))
        else:  # both are optional
            state = self.health.of_any_mount(request.volume_id)
        return csi_pb2.NodeGetVolumeHealthResponse(volume_health=volume_health(request.volume_id, state.conditions))

    def NodeGetStorageHealth(
        self, request: csi_pb2.NodeGetStorageHealthRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        return storage_health(self.health.of_node())

    def NodeGetInfo(
        self, request: csi_pb2.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetInfoResponse:
        """Without a limit of volumes by default: a mount costs a few descriptors."""
        topology = self._configuration.topology
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._configuration.node_id,
            max_volumes_per_node=self._configuration.most_volumes,
            accessible_topology=csi_pb2.Topology(segments=topology) if topology else None,
        )

    def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    # -- paths --------------------------------------------------------------------------------------------------------

    def _staging_of(self, request: csi_pb2.NodePublishVolumeRequest) -> Path:
        if not request.staging_target_path:
            raise NotMounted("staging_target_path: was not given; the volume must be staged before it is published")
        return self._path("staging_target_path", request.staging_target_path)

    def _path(self, field: str, text: str) -> Path:
        return checked_path(field, text, self._places.kubelet_directory)

    def _mount_at(self, field: str, text: str) -> MountEntry:
        """The mount of this driver at the path, which is asked about and not changed. Raises MissingParameter,
        InvalidParameter, VolumeNotFound (also for a relative path)."""
        if not text:
            raise MissingParameter(field)
        if not text.startswith("/"):
            checked_path(field, f"/{text}", None)
            raise VolumeNotFound(f"{field}: {text}: no volume of this driver is mounted there")
        found = MountTable.read().at(checked_path(field, text, None))
        if found is None or not is_ours(found):
            raise VolumeNotFound(f"{field}: {text}: no volume of this driver is mounted there")
        return found


def _stats(state: VolumeState) -> csi_pb2.NodeGetVolumeStatsResponse:
    """The size of the dataset, of which nothing counts as used: these numbers are for alerts on volumes that fill up,
    and for controllers that enlarge them. A dataset does neither, while ``used = total`` is a full volume for ever. (df
    has it as used.)"""
    mount, unit = state.mount, csi_pb2.VolumeUsage
    usage = []
    if mount is not None:
        usage = [
            unit(unit=unit.BYTES, total=mount.total_bytes, available=mount.total_bytes),
            unit(unit=unit.INODES, total=mount.file_count, available=mount.file_count),
        ]
    condition = volume_condition(state.conditions, () if mount is None else mount.notes)
    return csi_pb2.NodeGetVolumeStatsResponse(usage=usage, volume_condition=condition)
