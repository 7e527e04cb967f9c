"""CSI Node: stages with the cache daemon, publishes by bind mounts. Every call reads the host's mount table; the only
state in this process is which volumes have a call in flight."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from csi_driver.csi.capabilities import check_capability
from csi_driver.csi.path_validation import checked_path
from csi_driver.model.errors import (
    DaemonUnavailable,
    MountPointBusy,
    NotMounted,
    ViewUnavailable,
    VolumeNotFound,
    WarmupFailed,
)
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.materialised_views import is_view_of, view_shown_by
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc import deadlines
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.telemetry import fields
from csi_driver.volumes.data_plane import DataPlane, MountRequest, VolumeReport, WarmupState
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id
from csi_driver.volumes.warmup_waiting import wait_until_warm

logger = logging.getLogger(__name__)

FUSE_TYPE = "fuse.hayloft"
"""File system type of the driver's FUSE mounts in the mount table."""

_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_KUBERNETES_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Keys that Kubernetes adds to a volume context: facts about the pod, and service account tokens. They are not passed
to the daemon."""

_Rpc = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.VOLUME_CONDITION)

_WARMUP_WAIT_S = 110.0
"""Time-out of the wait for a warmup in a call without a deadline: a little less than kubelet's two minutes."""
_RESPONSE_S = 1.0
"""Reserved before the call's deadline for the response, which reports the progress of the warmup."""


@dataclass(frozen=True, slots=True)
class NodeConfiguration:
    """The part of the settings that the node service uses."""

    node_id: str
    inline_directory: Path
    """Where inline volumes are staged; in a cluster below kubelet's directory, so that the host sees the mounts."""
    kubelet_directory: Path | None = None


class NodeService(csi_pb2_grpc.NodeServicer):
    """Every call is idempotent: kubelet may repeat it after any crash, and while another call for the volume runs."""

    def __init__(self, configuration: NodeConfiguration, data_plane: DataPlane) -> None:
        self._configuration = configuration
        self._data_plane = data_plane
        self._pending = VolumeClaims()

    # -- staging ------------------------------------------------------------------------------------------------------

    def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        check_id("volume_id", request.volume_id)
        staging = self._path("staging_target_path", request.staging_target_path)
        capability = _capability(request)
        attributes = _attributes(request.volume_context, capability)
        with self._pending.claim(request.volume_id):
            self._stage(MountRequest(request.volume_id, os.fspath(staging), attributes, dict(request.secrets)))
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        check_id("volume_id", request.volume_id)
        staging = self._path("staging_target_path", request.staging_target_path)
        with self._pending.claim(request.volume_id):
            self._unstage(request.volume_id, staging)
        return csi_pb2.NodeUnstageVolumeResponse()

    def _stage(self, request: MountRequest) -> None:
        """Mounts through the daemon, and waits for the warmup if the volume has ``warmup: wait`` and the warmup was not
        cancelled. Raises as ``parse``, ``mount`` and ``wait_until_warm``; after the last the volume stays mounted, and
        the caller's retry resumes the wait."""
        parameters = VolumeParameters.parse(request.attributes)  # once per call, before anything is mounted
        self._data_plane.mount(request)
        # Success with nothing mounted would let pods read and write the node's own disk.
        if not _is_served(MountTable.read().at(request.mount_point)):
            raise _not_mounted(request.mount_point)
        if parameters.warmup != "wait":
            return
        if self._data_plane.warmup(request.volume_id).state is not WarmupState.CANCELLED:
            timeout_s = deadlines.remaining_s(_WARMUP_WAIT_S) - _RESPONSE_S
            wait_until_warm(self._data_plane, request.volume_id, timeout_s)

    def _unstage(self, volume_id: str, staging: Path) -> None:
        """If the daemon is dead, so is its mount, which is then unmounted without the daemon."""
        present = _require_ours_or_none(staging, views=False)
        try:
            self._data_plane.unmount(volume_id, os.fspath(staging))
        except DaemonUnavailable:
            if present is not None:
                bind_mounts.unmount(staging)

    # -- publishing ---------------------------------------------------------------------------------------------------

    def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        check_id("volume_id", request.volume_id)
        target = self._path("target_path", request.target_path)
        capability = _capability(request)
        inline = request.volume_context.get(_EPHEMERAL) == "true"
        staging = None if inline else self._staging_of(request)
        with self._pending.claim(request.volume_id):
            if staging is None:
                staging = self._stage_inline(request, capability)
            else:
                _require_staged(request.volume_id, staging)
                self._restage_if_lost(request, staging, capability)
            try:
                self._publish(request.volume_id, staging, target)
            except (ViewUnavailable, WarmupFailed):
                if inline:  # kubelet does not unpublish a volume after a permanent refusal
                    self._unstage_inline(request.volume_id)
                raise
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        check_id("volume_id", request.volume_id)
        target = self._path("target_path", request.target_path)
        with self._pending.claim(request.volume_id):
            _require_ours_or_none(target, views=True)
            with suppress(DaemonUnavailable):  # the next daemon removes views that are mounted nowhere
                self._data_plane.unpublish(request.volume_id, os.fspath(target))
            bind_mounts.unmount(target)
            _remove_target(target)
            self._unstage_inline(request.volume_id)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def _publish(self, volume_id: str, staging: Path, target: Path) -> None:
        """Shows the volume at the target: as a materialised view, which the daemon mounts, or as a bind mount of the
        FUSE mount. An existing mount stays: a published volume does not change its kind under a pod. On failure the
        target directory stays: the daemon may continue to build a view for it after this call, for the retry to find.
        """
        bind_mounts.ensure_directory(target)
        present = MountTable.read().at(target)
        if present is None or (is_view_of(present, volume_id) and not present.is_read_only):
            if self._data_plane.publish(volume_id, os.fspath(target)):
                if not is_view_of(MountTable.read().at(target), volume_id):
                    raise _not_mounted(target)
                return
        elif is_view_of(present, volume_id):
            return
        bind_mounts.bind_read_only(staging, target)

    def _restage_if_lost(
        self, request: csi_pb2.NodePublishVolumeRequest, staging: Path, capability: csi_pb2.VolumeCapability
    ) -> None:
        """Mounts the volume again if no daemon serves it. Kubelet stages a volume once for all pods of a node: after a
        daemon died without a keeper, every later pod would get a dead directory. Raises as ``_stage``."""
        try:
            if self._data_plane.volume(request.volume_id).mount_point == os.fspath(staging):
                return
        except VolumeNotFound:
            facts = fields(volume_id=request.volume_id, staging_path=os.fspath(staging))
            logger.warning("the volume is staged, but the daemon does not serve it; mounting it again", extra=facts)
        attributes = _attributes(request.volume_context, capability)
        self._stage(MountRequest(request.volume_id, os.fspath(staging), attributes, dict(request.secrets)))

    def _staging_of(self, request: csi_pb2.NodePublishVolumeRequest) -> Path:
        if not request.staging_target_path:
            raise NotMounted("staging_target_path: was not given; the volume must be staged before it is published")
        return self._path("staging_target_path", request.staging_target_path)

    def _stage_inline(self, request: csi_pb2.NodePublishVolumeRequest, capability: csi_pb2.VolumeCapability) -> Path:
        """Kubelet never stages an inline volume; its staging path is derived from its id."""
        staging = self._inline_path(request.volume_id)
        bind_mounts.ensure_directory(staging)
        attributes = _attributes(request.volume_context, capability)
        try:
            self._stage(MountRequest(request.volume_id, os.fspath(staging), attributes, dict(request.secrets)))
        except Exception:
            with suppress(OSError):  # rmdir fails while something is mounted there: then the directory stays
                staging.rmdir()
            raise
        return staging

    def _unstage_inline(self, volume_id: str) -> None:
        """Does nothing for a volume that is not inline, or is still published at another target."""
        staging = self._inline_path(volume_id)
        table = MountTable.read()
        present = table.at(staging)
        if present is not None:
            if any(entry.device == present.device and entry != present for entry in table.entries):
                return
            if any(is_view_of(entry, volume_id) for entry in table.entries):
                return
            self._unstage(volume_id, staging)
        bind_mounts.remove_mount_point(staging)

    def _inline_path(self, volume_id: str) -> Path:
        name = hashlib.blake2b(volume_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return Path(os.path.realpath(self._configuration.inline_directory), name)

    def _path(self, field: str, text: str) -> Path:
        return checked_path(field, text, self._configuration.kubelet_directory)

    # -- queries ------------------------------------------------------------------------------------------------------

    def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Never accesses the volume itself, so a mount whose daemon is dead or stopped cannot block the call."""
        check_id("volume_id", request.volume_id)
        present = self._published(request.volume_path)
        try:
            report = self._data_plane.volume(request.volume_id)
        except DaemonUnavailable as error:
            condition = csi_pb2.VolumeCondition(abnormal=True, message=str(error))
            return csi_pb2.NodeGetVolumeStatsResponse(volume_condition=condition)
        except VolumeNotFound:
            if not is_view_of(present, request.volume_id):
                raise
            # The FUSE mount was lost with a daemon that had no keeper; the hard links of the view need neither.
            condition = csi_pb2.VolumeCondition(message="a materialised view that the daemon no longer knows")
            return csi_pb2.NodeGetVolumeStatsResponse(volume_condition=condition)
        if is_view_of(present, request.volume_id):
            return _stats(report)
        staged = MountTable.read().at(report.mount_point)
        if staged is None or staged.device != present.device:
            raise VolumeNotFound(f"{request.volume_path}: shows another volume than {request.volume_id!r}")
        return _stats(report)

    def NodeGetInfo(
        self, request: csi_pb2.NodeGetInfoRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetInfoResponse:
        """Sets no limit of volumes: a mount costs a few descriptors."""
        return csi_pb2.NodeGetInfoResponse(node_id=self._configuration.node_id)

    def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in _CAPABILITIES]
        )

    def _published(self, volume_path: str) -> MountEntry:
        """The mount of this driver at the path. Raises MissingParameter, VolumeNotFound (also for a relative path)."""
        checked = checked_path("volume_path", volume_path if volume_path[:1] in ("", "/") else f"/{volume_path}", None)
        found = MountTable.read().at(checked) if volume_path.startswith("/") else None
        if found is None or not _is_ours(found):
            raise VolumeNotFound(f"{volume_path}: no volume of this driver is mounted there")
        return found


def _capability(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> csi_pb2.VolumeCapability:
    capability = request.volume_capability if request.HasField("volume_capability") else None
    check_capability(capability)
    return request.volume_capability


def _attributes(volume_context: Mapping[str, str], capability: csi_pb2.VolumeCapability) -> dict[str, str]:
    """The volume's own attributes. The mount flags of the capability are appended to ``mountOptions``."""
    attributes = {key: value for key, value in volume_context.items() if not key.startswith(_KUBERNETES_PREFIXES)}
    flags = list(capability.mount.mount_flags)
    if flags:
        present = attributes.get("mountOptions", "")
        attributes["mountOptions"] = ",".join([present, *flags] if present else flags)
    return attributes


def _is_served(entry: MountEntry | None) -> bool:
    """True for a FUSE mount of this driver."""
    return entry is not None and entry.fs_type == FUSE_TYPE


def _is_ours(entry: MountEntry) -> bool:
    """True for a FUSE mount or a materialised view of this driver."""
    return _is_served(entry) or view_shown_by(entry) is not None


def _require_ours_or_none(path: Path, *, views: bool) -> MountEntry | None:
    """The mount at the path: a FUSE mount or, with ``views``, a materialised view. Raises MountPointBusy for a mount
    that this driver has not made and must not remove."""
    present = MountTable.read().at(path)
    if present is not None and not (_is_ours(present) if views else _is_served(present)):
        raise MountPointBusy(f"{path}: {present.fs_type} is mounted there, which is not a volume of this driver")
    return present


def _require_staged(volume_id: str, staging: Path) -> None:
    """A bind mount of an empty directory would show a pod the node's disk."""
    if not _is_served(MountTable.read().at(staging)):
        raise NotMounted(f"{staging}: volume {volume_id!r} is not mounted there; stage it again")


def _not_mounted(path: Path | str) -> NotMounted:
    return NotMounted(
        f"{path}: the daemon reported success, but the mount is not there; is the directory shared between the daemon "
        "and the node plugin (mountPropagation)?"
    )


def _remove_target(target: Path) -> None:
    """Removes the driver's own directory, or a file or link that replaced it. Never removes files in a directory."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        target.unlink(missing_ok=True)
    else:
        bind_mounts.remove_mount_point(target)


def _stats(report: VolumeReport) -> csi_pb2.NodeGetVolumeStatsResponse:
    """Total equals used: nothing can be added to a dataset, so no byte and no inode is available."""
    usage = csi_pb2.VolumeUsage
    return csi_pb2.NodeGetVolumeStatsResponse(
        usage=[
            usage(unit=usage.BYTES, total=report.total_bytes, used=report.total_bytes),
            usage(unit=usage.INODES, total=report.file_count, used=report.file_count),
        ],
        volume_condition=csi_pb2.VolumeCondition(abnormal=report.abnormal, message=report.message),
    )
