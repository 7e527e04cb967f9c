"""Which volumes a process had mounted, so that it can unmount them when it ends in order."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from csi_driver import telemetry
from csi_driver.model.errors import HayloftError
from csi_driver.mounts import bind_mounts as bind
from csi_driver.mounts.materialised import is_view_of
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.volumes.data_plane import (
    DaemonReport,
    DataPlane,
    MountRequest,
    VolumeReport,
    WarmupReport,
    WarmupRequest,
)

logger = logging.getLogger(__name__)


class MountedVolumes:
    """A data plane that notes where it was asked to mount. Whether something is mounted there still, the mount table
    says; the notes only tell mounts of this process from those of another one on the same machine."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._data_plane = data_plane
        self._lock = threading.Lock()  # guards _noted and _targets
        self._noted: dict[str, str] = {}
        """Volume ids by mount point."""
        self._targets: dict[str, str] = {}
        """Volume ids by path where a view may be mounted."""

    def mount(self, wish: MountRequest) -> VolumeReport:
        with self._lock:
            self._noted[wish.mount_point] = wish.volume_id
        return self._data_plane.mount(wish)

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

    def report(self) -> DaemonReport:
        return self._data_plane.report()

    def start_warmup(self, wish: WarmupRequest) -> WarmupReport:
        return self._data_plane.start_warmup(wish)

    def warmup(self, volume_id: str) -> WarmupReport:
        return self._data_plane.warmup(volume_id)

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        return self._data_plane.cancel_warmup(volume_id)

    def unmount_all(self) -> None:
        """Takes away every mount of the noted volumes, published ones first. What is in use is detached: it ends with
        its last open file. Raises nothing; what remains is logged."""
        with self._lock:
            noted, targets = dict(self._noted), dict(self._targets)
        for target, volume_id in targets.items():
            if is_view_of(MountTable.read().at(target), volume_id):
                _detach(target)
                self._free_view(volume_id, target)
        for mount_point, volume_id in noted.items():
            present = MountTable.read().at(mount_point)
            if present is None or not present.is_fuse:
                continue
            for shown in _shown_elsewhere(present):
                _detach(shown.mount_point)
            self._unmount(volume_id, mount_point)

    def _free_view(self, volume_id: str, target: str) -> None:
        with suppress(HayloftError):  # the next daemon on this cache does it
            self._data_plane.unpublish(volume_id, target)

    def _unmount(self, volume_id: str, mount_point: str) -> None:
        try:
            self._data_plane.unmount(volume_id, mount_point)
        except HayloftError as error:
            facts = telemetry.fields(volume_id=volume_id, mount_point=mount_point, error=str(error))
            logger.info("detached, since the daemon did not unmount it", extra=facts)
            _detach(mount_point)


def _shown_elsewhere(staged: MountEntry) -> Iterator[MountEntry]:
    for entry in MountTable.read().entries:
        if entry.device == staged.device and entry.mount_point != staged.mount_point:
            yield entry


def _detach(mount_point: str) -> None:
    path = Path(mount_point)
    try:
        bind.unmount(path, lazy=True)
    except HayloftError as error:
        logger.warning("left mounted", extra=telemetry.fields(mount_point=os.fspath(path), error=str(error)))
