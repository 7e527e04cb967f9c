"""Publishes staged volumes to pods: as bind mounts of the FUSE mount, or as materialised views, which the daemon
mounts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from csi_driver.csi.capabilities import mount_group
from csi_driver.csi.mount_requests import mount_request, volume_attributes
from csi_driver.csi.own_mounts import Places, is_served, not_mounted
from csi_driver.csi.staging import Staging
from csi_driver.model import spans
from csi_driver.model.errors import InvalidParameter, MountPointBusy, NotMounted, VolumeNotFound
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.materialised_views import is_view_of
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc.pb import csi_pb2
from csi_driver.telemetry import fields
from csi_driver.volumes.attribute_conflict import require_equal
from csi_driver.volumes.data_plane import DataPlane, VolumeReport
from csi_driver.volumes.parameters import VolumeParameters

logger = logging.getLogger(__name__)

_Mode = csi_pb2.VolumeCapability.AccessMode


class Publication:
    """Reads the host's mount table at every call. The caller has the claim on the volume."""

    def __init__(self, data_plane: DataPlane, staging: Staging, places: Places) -> None:
        self._data_plane = data_plane
        self._staging = staging
        self._places = places

    def publish(self, request: csi_pb2.NodePublishVolumeRequest, staging: Path, target: Path) -> None:
        """Shows the volume at the target: as a materialised view, which the daemon mounts, or as a bind mount of the
        FUSE mount. An existing mount stays: a published volume does not change its kind under a pod. On failure the
        target directory stays: the daemon may continue to build a view for it after this call, for the retry to find.

        Raises InvalidParameter, ViewUnavailable, WarmupFailed, and as binding.
        """
        volume_id = request.volume_id
        bind_mounts.ensure_directory(target)
        if not self._replaces_dead(volume_id, MountTable.read(), staging, target):
            return
        present = MountTable.read().at(target)
        if present is None and not request.readonly:
            # The container's runtime makes a mount of its own from the one at the target, with the flags that kubelet
            # names: writable unless this field was set (runc 1.2 and newer; before that it kept ours). A FUSE mount is
            # a read-only file system whatever the flags of its mounts are; through a view, root in the container would
            # write to the cache.
            _require_no_view(request)
        elif present is None or (is_view_of(present, volume_id) and not present.is_read_only):
            if self._data_plane.publish(volume_id, os.fspath(target)):
                if not is_view_of(MountTable.read().at(target), volume_id):
                    self._data_plane.unpublish(volume_id, os.fspath(target))
                    raise not_mounted(target)
                return
        elif is_view_of(present, volume_id):
            return
        with spans.span("bind mount"):
            bind_mounts.bind_read_only(staging, target)
        # The staging mount may have ended in between: the directory that was below it is the node's own disk.
        if not is_served(MountTable.read().at(target)):
            bind_mounts.unmount(target)
            raise NotMounted(f"{staging}: volume {volume_id!r} was unmounted while it was published; retry")

    def require_staged(self, volume_id: str, staging: Path) -> None:
        """A bind mount of an empty directory would show a pod the node's disk. A mount that died counts as staged: the
        caller of CSI knows nothing of its death, and ``require_served`` mounts it again."""
        if is_served(MountTable.read().at(staging)):
            return
        lost = (known for known in self._data_plane.mounts() if not known.device)
        if not any((known.volume_id, known.mount_point) == (volume_id, os.fspath(staging)) for known in lost):
            raise NotMounted(f"{staging}: volume {volume_id!r} is not mounted there; stage it again")

    def require_single(self, request: csi_pb2.NodePublishVolumeRequest, staging: Path, target: Path) -> None:
        """A volume for a single writer (ReadWriteOncePod) has one target path, also one that nothing can be written to.
        Raises MountPointBusy."""
        if request.volume_capability.access_mode.mode != _Mode.SINGLE_NODE_SINGLE_WRITER:
            return
        table = MountTable.read()
        staged = table.at(staging)
        targets = () if staged is None else self._places.targets_of(request.volume_id, staged, table)
        for other in targets:
            if other.mount_point != os.fspath(target):
                raise MountPointBusy(
                    f"{other.mount_point}: volume {request.volume_id} is published there, and its access mode "
                    "SINGLE_NODE_SINGLE_WRITER (ReadWriteOncePod) allows one pod; end that one first, or use "
                    "ReadOnlyMany"
                )

    def require_served(
        self, request: csi_pb2.NodePublishVolumeRequest, staging: Path, capability: csi_pb2.VolumeCapability
    ) -> None:
        """Kubelet stages a volume once for all pods of a node. So this is where another PersistentVolume of the same
        volumeHandle is found, whose pod would be shown the dataset of the first. And if no daemon serves the volume it
        is mounted again: after a daemon died without a keeper, every later pod would get a dead directory.

        Kubelet repeats the call for a pod that runs (``requiresRepublish``), with what the Secret holds by then.

        Raises VolumeConflict, MountPointBusy (the pod's group cannot read), and as ``Staging.stage``."""
        attributes = volume_attributes(request.volume_context, capability)
        try:
            report = self._data_plane.volume(request.volume_id)
            if report.mount_point == os.fspath(staging):
                # CSI lets a caller leave the context out.
                if report.attributes and request.volume_context.get("url"):
                    wanted = VolumeParameters.parse(attributes).to_context()
                    require_equal(request.volume_id, report.attributes, wanted)
                _require_group(report, mount_group(capability))
                known = attributes if "url" in attributes else dict(report.attributes)
                renewed = mount_request(request, staging, known, republished=True)
                if renewed.secrets and known:
                    self._data_plane.mount(renewed)
                return
        except VolumeNotFound:
            facts = fields(volume_id=request.volume_id, staging_path=os.fspath(staging))
            logger.warning("the volume is staged, but the daemon does not serve it; mounting it again", extra=facts)
        self._staging.stage(mount_request(request, staging, attributes))

    def _replaces_dead(self, volume_id: str, table: MountTable, staging: Path, target: Path) -> bool:
        """False if the target shows another mount of the volume than the staged one, and that lives. A dead mount there
        is unmounted: every access to it fails, and the volume has another one by now."""
        present, staged = table.at(target), table.at(staging)
        if present is None or not is_served(present) or (staged is not None and staged.device == present.device):
            return True
        shown = self._volume_shown_by(present)
        if shown is None:
            facts = fields(volume_id=volume_id, target_path=os.fspath(target))
            logger.warning("the mount at the target path is dead; publishing the volume anew", extra=facts)
            bind_mounts.unmount(target, lazy=True)
        return shown != volume_id

    def _volume_shown_by(self, entry: MountEntry) -> str | None:
        """The volume whose FUSE mount the entry shows; None if no daemon serves it, so that it is dead."""
        return {known.device: known.volume_id for known in self._data_plane.mounts()}.get(entry.device)


def _require_no_view(request: csi_pb2.NodePublishVolumeRequest) -> None:
    """Raises InvalidParameter for a volume that must be a materialised view."""
    if request.volume_context.get("view") == "materialised":
        remedy = "Set it at the volume in the pod: persistentVolumeClaim.readOnly, or csi.readOnly of an inline volume"
        raise InvalidParameter("readOnly", "false", "true with view: materialised", remedy)


def _require_group(report: VolumeReport, group: int) -> None:
    """All pods of a node share one mount, which has the group of the first of them. That matters where the modes let
    the group read and not others. Raises MountPointBusy."""
    if not group or not report.mount_group or group == report.mount_group or "gid" in report.attributes:
        return
    if _reads_by_group_alone(report.attributes):
        raise MountPointBusy(
            f"volume {report.volume_id}: is mounted on this node with group {report.mount_group}, the fsGroup of "
            f"another pod, and its fileMode and dirMode let only the group read, not group {group} of this pod. "
            "Use one fsGroup for all pods of a node, set the parameter gid, or let others read"
        )


def _reads_by_group_alone(attributes: Mapping[str, str]) -> bool:
    files, directories = int(attributes.get("fileMode", "0444"), 8), int(attributes.get("dirMode", "0555"), 8)
    others = files & 0o004 and directories & 0o005 == 0o005
    return bool(files & 0o040 and not others)
