"""CSI Node: stages with the cache daemon, publishes by bind mounts. Every call reads the host's mount table; the only
state in this process is which volumes have a call in flight."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from csi_driver.csi.capabilities import check_capability
from csi_driver.csi.path_validation import checked_path
from csi_driver.model.errors import (
    DaemonUnavailable,
    InvalidParameter,
    MountError,
    MountPointBusy,
    NotMounted,
    OperationPending,
    ViewUnavailable,
    VolumeNotFound,
    WarmupFailed,
)
from csi_driver.model.tenant import ADMINISTRATOR, Tenant
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.materialised_views import is_view_of, view_shown_by
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.rpc import callers, deadlines
from csi_driver.rpc.pb import csi_pb2, csi_pb2_grpc
from csi_driver.rpc.volume_claims import VolumeClaims
from csi_driver.telemetry import fields
from csi_driver.volumes.attribute_conflict import require_equal
from csi_driver.volumes.data_plane import DataPlane, MountRequest, VolumeReport, WarmupState
from csi_driver.volumes.parameters import VolumeParameters
from csi_driver.volumes.volume_ids import check_id
from csi_driver.volumes.warmup_waiting import wait_until_warm

logger = logging.getLogger(__name__)

FUSE_TYPE = "fuse.hayloft"
"""File system type of the driver's FUSE mounts in the mount table."""

_SUB_PATHS = "volume-subpaths"
"""The directory below that of a pod in which kubelet mounts parts of volumes."""

_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_POD_NAMESPACE = "csi.storage.k8s.io/pod.namespace"
_KUBERNETES_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Keys that Kubernetes adds to a volume context: facts about the pod, and service account tokens. They are not passed
to the daemon."""

_Rpc = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES = (_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.VOLUME_CONDITION)

_DEAD = (
    "the mount is dead (ENOTCONN): its cache daemon ended without a keeper, or it was aborted; restart the pod, or its "
    "containers once the volume is published again"
)
"""Constant: kubelet publishes a message that changes only if the kind of the condition changes too."""

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
        # Links are followed once, here. In the paths of requests none is followed below kubelet's directory.
        self._inline_directory = Path(os.path.realpath(configuration.inline_directory))
        kubelet = configuration.kubelet_directory
        self._kubelet_directory = None if kubelet is None else Path(os.path.realpath(kubelet))
        self._data_plane = data_plane
        self._pending = VolumeClaims()

    # -- leftovers of lost calls ---------------------------------------------------------------------------------------

    def remove_empty_directories(self) -> None:
        """Of inline volumes that are not mounted. To be called before calls are served. Never raises for one of them:
        what it cannot remove stays."""
        directory = self._inline_directory
        for name in os.listdir(directory) if directory.is_dir() else ():
            with suppress(MountError):
                bind_mounts.remove_mount_point(directory / name)

    def unstage_unpublished(self) -> None:
        """Unstages the inline volumes that no target path shows: kubelet has lost the call that published them, or this
        process has died in the one that unpublishes them. Calls may be served meanwhile. Raises DaemonUnavailable."""
        for known in self._data_plane.mounts():
            staging = self._inline_path(known.volume_id)
            if os.fspath(staging) != known.mount_point:
                continue
            try:
                with self._pending.claim(known.volume_id):
                    if known.device:
                        self._unstage_inline(known.volume_id)
                    else:  # a publication mounts it anew, also if the daemon does not remember it
                        self._unstage(known.volume_id, staging)
                        bind_mounts.remove_mount_point(staging)
            except (OperationPending, MountError) as error:
                facts = fields(volume_id=known.volume_id, staging_path=known.mount_point, error=str(error))
                logger.info("an inline volume is not unstaged now: it has a call in flight, or is busy", extra=facts)

    # -- staging ------------------------------------------------------------------------------------------------------

    def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        check_id("volume_id", request.volume_id)
        staging = self._path("staging_target_path", request.staging_target_path)
        capability = _capability(request)
        attributes = _attributes(request.volume_context, capability)
        with self._pending.claim(request.volume_id):
            self._stage(_mount_request(request, staging, attributes))
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
        """Mounts through the daemon, which uses the secrets from then on, and waits for the warmup if the volume has
        ``warmup: wait``, is not in use yet, and the warmup was not cancelled. Raises as ``parse``, ``mount`` and
        ``wait_until_warm``; after the last the volume stays mounted, and the caller's retry resumes the wait."""
        parameters = VolumeParameters.parse(request.attributes)  # once per call, before anything is mounted
        self._data_plane.mount(request)
        # Success with nothing mounted would let pods read and write the node's own disk.
        if not _is_served(MountTable.read().at(request.mount_point)):
            raise _not_mounted(request.mount_point)
        if parameters.warmup != "wait" or request.republished:
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
            published = MountTable.read().at(target)
            republished = published is not None and _is_ours(published)
            if republished:
                callers.note_repeat()
            if staging is None:
                staging = self._stage_inline(request, capability, republished=republished)
            else:
                self._require_staged(request.volume_id, staging)
                self._require_served(request, staging, capability)
            try:
                self._publish(request, staging, target)
            except (InvalidParameter, ViewUnavailable, WarmupFailed):
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
            bind_mounts.remove_mount_point(target, file_or_link=True)
            self._unstage_inline(request.volume_id)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def _publish(self, request: csi_pb2.NodePublishVolumeRequest, staging: Path, target: Path) -> None:
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
                    raise _not_mounted(target)
                return
        elif is_view_of(present, volume_id):
            return
        bind_mounts.bind_read_only(staging, target)
        # The staging mount may have ended in between: the directory that was below it is the node's own disk.
        if not _is_served(MountTable.read().at(target)):
            bind_mounts.unmount(target)
            raise NotMounted(f"{staging}: volume {volume_id!r} was unmounted while it was published; retry")

    def _replaces_dead(self, volume_id: str, table: MountTable, staging: Path, target: Path) -> bool:
        """False if the target shows another mount of the volume than the staged one, and that lives. A dead mount there
        is unmounted: every access to it fails, and the volume has another one by now."""
        present, staged = table.at(target), table.at(staging)
        if present is None or not _is_served(present) or (staged is not None and staged.device == present.device):
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

    def _require_staged(self, volume_id: str, staging: Path) -> None:
        """A bind mount of an empty directory would show a pod the node's disk. A mount that died counts as staged: the
        caller of CSI knows nothing of its death, and ``_require_served`` mounts it again."""
        if _is_served(MountTable.read().at(staging)):
            return
        lost = (known for known in self._data_plane.mounts() if not known.device)
        if not any((known.volume_id, known.mount_point) == (volume_id, os.fspath(staging)) for known in lost):
            raise NotMounted(f"{staging}: volume {volume_id!r} is not mounted there; stage it again")

    def _require_served(
        self, request: csi_pb2.NodePublishVolumeRequest, staging: Path, capability: csi_pb2.VolumeCapability
    ) -> None:
        """Kubelet stages a volume once for all pods of a node. So this is where another PersistentVolume of the same
        volumeHandle is found, whose pod would be shown the dataset of the first. And if no daemon serves the volume it
        is mounted again: after a daemon died without a keeper, every later pod would get a dead directory.

        Kubelet repeats the call for a pod that runs (``requiresRepublish``), with what the Secret holds by then.

        Raises VolumeConflict, and as ``_stage``."""
        attributes = _attributes(request.volume_context, capability)
        try:
            report = self._data_plane.volume(request.volume_id)
            if report.mount_point == os.fspath(staging):
                # CSI lets a caller leave the context out.
                if report.attributes and request.volume_context.get("url"):
                    wanted = VolumeParameters.parse(attributes).to_context()
                    require_equal(request.volume_id, report.attributes, wanted)
                known = attributes if "url" in attributes else dict(report.attributes)
                if request.secrets and known:
                    self._data_plane.mount(_mount_request(request, staging, known, republished=True))
                return
        except VolumeNotFound:
            facts = fields(volume_id=request.volume_id, staging_path=os.fspath(staging))
            logger.warning("the volume is staged, but the daemon does not serve it; mounting it again", extra=facts)
        self._stage(_mount_request(request, staging, attributes))

    def _staging_of(self, request: csi_pb2.NodePublishVolumeRequest) -> Path:
        if not request.staging_target_path:
            raise NotMounted("staging_target_path: was not given; the volume must be staged before it is published")
        return self._path("staging_target_path", request.staging_target_path)

    def _stage_inline(
        self, request: csi_pb2.NodePublishVolumeRequest, capability: csi_pb2.VolumeCapability, *, republished: bool
    ) -> Path:
        """Kubelet never stages an inline volume; its staging path is derived from its id."""
        staging = self._inline_path(request.volume_id)
        bind_mounts.ensure_directory(staging)
        attributes = _attributes(request.volume_context, capability)
        try:
            self._stage(_mount_request(request, staging, attributes, republished=republished))
        except Exception:
            with suppress(MountError):  # while something is mounted there, the directory stays
                bind_mounts.remove_mount_point(staging)
            raise
        return staging

    def _unstage_inline(self, volume_id: str) -> None:
        """Does nothing for a volume that is not inline, or is still published at another target."""
        staging = self._inline_path(volume_id)
        table = MountTable.read()
        present = table.at(staging)
        if present is None and not staging.is_dir():
            return
        if present is not None:
            if any(self._publishes(entry, present, volume_id) for entry in table.entries):
                return
            _detach_copies(present, table)
        self._unstage(volume_id, staging)
        bind_mounts.remove_mount_point(staging)

    def _publishes(self, entry: MountEntry, staged: MountEntry, volume_id: str) -> bool:
        """Whether the mount is at a target path of the volume. Mounts of a part of it, and those of containers
        (``subPath``), are none; nor are copies of the staging mount, outside of kubelet's directory."""
        path = Path(entry.mount_point)
        if path.parent == self._inline_directory or _SUB_PATHS in path.parts:
            return False
        if self._kubelet_directory is not None and not path.is_relative_to(self._kubelet_directory):
            return False
        return is_view_of(entry, volume_id) or (entry.device, entry.root) == (staged.device, staged.root)

    def _inline_path(self, volume_id: str) -> Path:
        name = hashlib.blake2b(volume_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._inline_directory / name

    def _path(self, field: str, text: str) -> Path:
        return checked_path(field, text, self._kubelet_directory)

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
            report = None
        if is_view_of(present, request.volume_id):
            if report is not None:
                return _stats(report)
            # The FUSE mount was lost with a daemon that had no keeper; the hard links of the view need neither.
            condition = csi_pb2.VolumeCondition(message="a materialised view that the daemon no longer knows")
            return csi_pb2.NodeGetVolumeStatsResponse(volume_condition=condition)
        shown = self._volume_shown_by(present)
        if shown is None and _is_served(present):
            condition = csi_pb2.VolumeCondition(abnormal=True, message=_DEAD)
            return csi_pb2.NodeGetVolumeStatsResponse(volume_condition=condition)
        if report is None or shown != request.volume_id:
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


def _require_no_view(request: csi_pb2.NodePublishVolumeRequest) -> None:
    """Raises InvalidParameter for a volume that must be a materialised view."""
    if request.volume_context.get("view") == "materialised":
        remedy = "Set it at the volume in the pod: persistentVolumeClaim.readOnly, or csi.readOnly of an inline volume"
        raise InvalidParameter("readOnly", "false", "true with view: materialised", remedy)


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


def _mount_request(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
    staging: Path,
    attributes: dict[str, str],
    *,
    republished: bool = False,
) -> MountRequest:
    tenant = _tenant(request.volume_context)
    return MountRequest(request.volume_id, os.fspath(staging), attributes, dict(request.secrets), tenant, republished)


def _tenant(volume_context: Mapping[str, str]) -> Tenant:
    """Kubelet writes both facts of an inline volume over attributes of the same name, so a pod can neither forge nor
    omit them; a call with the first alone is not kubelet's, but of another client with access to this socket, which is
    the administrator's. The namespace of a claim is in the record of its volume, which the daemon reads."""
    namespace = volume_context.get(_POD_NAMESPACE, "")
    inline = volume_context.get(_EPHEMERAL) == "true"
    return Tenant(namespace, inline=True) if inline and namespace else ADMINISTRATOR


def _is_served(entry: MountEntry | None) -> bool:
    """True for a FUSE mount of this driver."""
    return entry is not None and entry.fs_type == FUSE_TYPE


def _is_ours(entry: MountEntry) -> bool:
    """True for a FUSE mount or a materialised view of this driver."""
    return _is_served(entry) or view_shown_by(entry) is not None


def _detach_copies(staged: MountEntry, table: MountTable) -> None:
    """Of the staging mount of an inline volume. A container that is started while the volume is mounted has one more in
    each of its volumes that holds kubelet's directory, or the part of it with the staging path: such as that of the
    CSI socket. The directory could not be removed. Copies in other containers end with the directory."""
    *_, directory, name = Path(staged.mount_point).parts
    for entry in table.entries:
        if entry.device == staged.device and entry.mount_point != staged.mount_point:
            path = Path(entry.mount_point)
            if path.parts[-2:] == (directory, name):
                bind_mounts.unmount(path, lazy=True)


def _require_ours_or_none(path: Path, *, views: bool) -> MountEntry | None:
    """The mount at the path: a FUSE mount or, with ``views``, a materialised view. Raises MountPointBusy for a mount
    that this driver has not made and must not remove."""
    present = MountTable.read().at(path)
    if present is not None and not (_is_ours(present) if views else _is_served(present)):
        raise MountPointBusy(f"{path}: {present.fs_type} is mounted there, which is not a volume of this driver")
    return present


def _not_mounted(path: Path | str) -> NotMounted:
    return NotMounted(
        f"{path}: the daemon reported success, but the mount is not there; is the directory shared between the daemon "
        "and the node plugin (mountPropagation)?"
    )


def _stats(report: VolumeReport) -> csi_pb2.NodeGetVolumeStatsResponse:
    """The size of the dataset, of which nothing counts as used: these numbers are for alerts on volumes that fill up,
    and for controllers that enlarge them. A dataset does neither, while ``used = total`` is a full volume for ever. (df
    has it as used.)"""
    usage = csi_pb2.VolumeUsage
    return csi_pb2.NodeGetVolumeStatsResponse(
        usage=[
            usage(unit=usage.BYTES, total=report.total_bytes, available=report.total_bytes),
            usage(unit=usage.INODES, total=report.file_count, available=report.file_count),
        ],
        volume_condition=csi_pb2.VolumeCondition(abnormal=report.abnormal, message=report.message),
    )
