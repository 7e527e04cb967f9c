"""Records the volumes that this process mounted, so that it can unmount them at a clean shutdown."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from csi_driver import telemetry
from csi_driver.model.errors import HayloftError
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.materialised_views import is_view_of
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.volumes.data_plane import (
    DaemonReport,
    DataPlane,
    HealthReport,
    KnownMount,
    MountRequest,
    TraceReport,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
)

logger = logging.getLogger(__name__)


class MountedVolumes:
    """A DataPlane that records its mount points. The records only distinguish the mounts of this process from those of
    another one on the same machine; whether a volume is still mounted is read from the mount table."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._lock = threading.Lock()  # guards _staged and _targets; not held during a call to the daemon
        self._staged: dict[str, str] = {}
        """Volume ids by mount point."""
        self._targets: dict[str, str] = {}
        """Volume ids by path where a view may be mounted."""

    def mount(self, request: MountRequest) -> VolumeReport:
        with self._lock:  # before the mount: one that times out here may still be made by the daemon
            self._staged[request.mount_point] = request.volume_id
        return self._data_plane.mount(request)

    def unmount(self, volume_id: str, mount_point: str) -> None:
        self._data_plane.unmount(volume_id, mount_point)

    def publish(self, volume_id: str, target: str) -> bool:
        with self._lock:
            self._targets[target] = volume_id
        return self._data_plane.publish(volume_id, target)

    def unpublish(self, volume_id: str, target: str) -> None:
        with self._lock:
            self._targets.pop(target, None)
        self._data_plane.unpublish(volume_id, target)

    def volume(self, volume_id: str) -> VolumeReport:
        return self._data_plane.volume(volume_id)

    def mounts(self) -> tuple[KnownMount, ...]:
        return self._data_plane.mounts()

    def report(self) -> DaemonReport:
        return self._data_plane.report()

    def health(self) -> HealthReport:
        return self._data_plane.health()

    def reserve(self, volume_id: str, count_bytes: int) -> VolumeReport:
        return self._data_plane.reserve(volume_id, count_bytes)

    def start_warmup(self, request: WarmupRequest) -> WarmupReport:
        return self._data_plane.start_warmup(request)

    def warmup(self, volume_id: str) -> WarmupReport:
        return self._data_plane.warmup(volume_id)

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        return self._data_plane.cancel_warmup(volume_id)

    def start_trace(self, volume_id: str, seconds: float) -> None:
        self._data_plane.start_trace(volume_id, seconds)

    def stop_trace(self, volume_id: str) -> TraceReport:
        return self._data_plane.stop_trace(volume_id)

    def read_trace(self, volume_id: str, offset: int) -> bytes:
        return self._data_plane.read_trace(volume_id, offset)

    def unmount_all(self) -> None:
        """Unmounts every recorded volume, published targets first. A busy mount is detached: it ends with its last open
        file. Never raises; mounts that remain are logged."""
        with self._lock:
            staged, targets = dict(self._staged), dict(self._targets)
        for target, volume_id in targets.items():
            if is_view_of(MountTable.read().at(target), volume_id):
                _detach(target)
                with suppress(HayloftError):  # otherwise the next daemon on this cache removes the view
                    self._data_plane.unpublish(volume_id, target)
        for mount_point, volume_id in staged.items():
            present = MountTable.read().at(mount_point)
            if present is None or not present.is_fuse:
                continue
            for bind_mount in _bind_mounts_of(present):
                _detach(bind_mount.mount_point)
            self._unmount(volume_id, mount_point)

    def _unmount(self, volume_id: str, mount_point: str) -> None:
        try:
            self._data_plane.unmount(volume_id, mount_point)
        except HayloftError as error:
            facts = telemetry.fields(volume_id=volume_id, mount_point=mount_point, error=str(error))
            logger.info("the daemon did not unmount a volume; detaching the mount", extra=facts)
            _detach(mount_point)


def _bind_mounts_of(staged: MountEntry) -> Iterator[MountEntry]:
    for entry in MountTable.read().entries:
        if entry.device == staged.device and entry.mount_point != staged.mount_point:
            yield entry


def _detach(mount_point: str) -> None:
    path = Path(mount_point)
    try:
        bind_mounts.unmount(path, lazy=True)
    except HayloftError as error:
        facts = telemetry.fields(mount_point=os.fspath(path), error=str(error))
        logger.warning("a mount cannot be detached and is left mounted", extra=facts)
