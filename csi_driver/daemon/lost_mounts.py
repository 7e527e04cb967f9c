"""Mounts that died: with a daemon that had no keeper, or aborted by the kernel or an administrator.

Kubelet knows nothing of such a death. A lost mount is remembered, also by the next daemon, until its volume is
published again, which mounts it anew, or unstaged.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from csi_driver import telemetry
from csi_driver.daemon.mount_records import MountRecord, MountRecords
from csi_driver.fuse import mounting
from csi_driver.model.errors import HayloftError, MountPointBusy, NotMounted
from csi_driver.mounts.mount_table import MountTable
from csi_driver.volumes.data_plane import MountRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LostMount:
    record: MountRecord
    secrets: Mapping[str, str] = field(repr=False)
    """Empty also if they were lost with the process that had them."""


class LostMounts:
    """By mount point. May be used from any thread."""

    def __init__(self, records: MountRecords) -> None:
        self._records = records
        self._lock = threading.Lock()  # guards _lost; not held across disk or mount(2)
        self._lost: dict[str, _LostMount] = {}

    def remember(self, record: MountRecord) -> None:
        """One that an earlier daemon has recorded as lost."""
        with self._lock:
            self._lost[record.mount_point] = _LostMount(record, {})

    def add(self, record: MountRecord, secrets: Mapping[str, str]) -> None:
        """A mount that ended and was not unmounted by a call; before its own records are removed. What is left of it is
        unmounted: nothing can be done with it, and kubelet cannot stage onto it either. Pods that have it get ENOTCONN
        until the volume is published again and their containers are restarted."""
        entry = mounting.find(Path(record.mount_point))
        if entry is not None and record.device in (entry.device, ""):
            with suppress(HayloftError):
                mounting.unmount(Path(record.mount_point), lazy=True)
        self.forget(record.mount_point)
        # A record of its own: that of the mount goes with its other files.
        lost = replace(record, mount_id=MountRecord.new_id(), device="", lost=True)
        with self._lock:
            self._lost[record.mount_point] = _LostMount(lost, secrets)
        with suppress(HayloftError):  # a full disk: the next daemon does not know it
            self._records.save(lost)

    def forget(self, mount_point: str) -> None:
        """None there is success."""
        with self._lock:
            lost = self._lost.pop(mount_point, None)
        if lost is not None:
            self._records.remove(lost.record.mount_id)

    def forget_removed(self) -> None:
        """The caller of CSI removes the directory of a volume that it has unstaged, perhaps without this daemon."""
        with self._lock:
            lost = list(self._lost)
        for mount_point in lost:
            if MountTable.read().at(mount_point) is None and not os.path.lexists(mount_point):
                self.forget(mount_point)

    def records(self) -> list[MountRecord]:
        with self._lock:
            return [lost.record for lost in self._lost.values()]

    def of(self, request: MountRequest) -> MountRecord | None:
        """The record of the mount that the request replaces; None if no mount of its volume was lost there."""
        lost = self._of(request)
        return None if lost is None else lost.record

    def with_secret(self, request: MountRequest) -> MountRequest:
        """A call that publishes a staged volume need not bring the Secret: then it is that of the mount that was lost.
        Raises NotMounted if it was lost too: without it all reads would fail, or be those of another identity."""
        lost = self._of(request)
        if request.secrets or lost is None:
            return request
        if lost.record.with_secret and not lost.secrets:
            raise NotMounted(
                f"{request.mount_point}: the mount of volume {request.volume_id} died, and its Secret with it, which "
                "only NodeStageVolume brings; delete the pods of this node that use the volume, so that it is staged "
                "again. With the Secret as nodePublishSecretRef as well, a publication brings it"
            )
        return replace(request, secrets=lost.secrets)

    def _of(self, request: MountRequest) -> _LostMount | None:
        with self._lock:
            lost = self._lost.get(request.mount_point)
        return lost if lost is not None and lost.record.volume_id == request.volume_id else None


def remove_dead_mount(mount_point: Path) -> None:
    """Unmounts a FUSE mount of this driver that no daemon serves; none there is success. Raises MountPointBusy for a
    foreign mount."""
    entry = MountTable.read().at(mount_point)
    if entry is None:
        return
    if entry.fs_type != mounting.FS_TYPE:
        raise MountPointBusy(
            f"{mount_point}: {entry.source} ({entry.fs_type}) is mounted there; unmount it or choose another path"
        )
    facts = telemetry.fields(mount_point=str(mount_point))
    logger.warning("no daemon serves the mount at the staging path; unmounting it before mounting anew", extra=facts)
    mounting.unmount(mount_point, lazy=True)
