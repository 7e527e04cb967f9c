"""Inline volumes: kubelet publishes them without having staged them, so their staging is part of the publication."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from csi_driver.csi.own_mounts import Places
from csi_driver.csi.staging import Staging
from csi_driver.model.errors import MountError, OperationPending
from csi_driver.mounts import bind_mounts
from csi_driver.mounts.mount_table import MountEntry, MountTable
from csi_driver.telemetry import fields
from csi_driver.volumes.data_plane import DataPlane, MountRequest

logger = logging.getLogger(__name__)


class InlineVolumes:
    """Reads the host's mount table at every call. The caller has the claim on the volume, unless said otherwise."""

    def __init__(self, data_plane: DataPlane, staging: Staging, places: Places) -> None:
        self._data_plane = data_plane
        self._staging = staging
        self._places = places

    def path(self, volume_id: str) -> Path:
        """Where the volume is staged; derived from its id."""
        name = hashlib.blake2b(volume_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._places.inline_directory / name

    def stage(self, request: MountRequest) -> None:
        """Makes the directory too, and removes it when staging fails."""
        staging = Path(request.mount_point)
        bind_mounts.ensure_directory(staging)
        try:
            self._staging.stage(request)
        except Exception:
            with suppress(MountError):  # while something is mounted there, the directory stays
                bind_mounts.remove_mount_point(staging)
            raise

    def unstage(self, volume_id: str) -> None:
        """Does nothing for a volume that is not inline, or is still published at another target."""
        staging = self.path(volume_id)
        table = MountTable.read()
        present = table.at(staging)
        if present is None and not staging.is_dir():
            return
        if present is not None:
            if any(self._places.targets_of(volume_id, present, table)):
                return
            _detach_copies(present, table)
        self._staging.unstage(volume_id, staging)
        bind_mounts.remove_mount_point(staging)

    def remove_empty_directories(self) -> None:
        """Of volumes that are not mounted. To be called before calls are served. Never raises for one of them: what it
        cannot remove stays."""
        directory = self._places.inline_directory
        for name in os.listdir(directory) if directory.is_dir() else ():
            with suppress(MountError):
                bind_mounts.remove_mount_point(directory / name)

    def unstage_unpublished(self, claim: Callable[[str], AbstractContextManager[None]]) -> None:
        """Unstages the volumes that no target path shows: kubelet has lost the call that published them, or this
        process has died in the one that unpublishes them. Each with its claim: calls may be served meanwhile. Raises
        DaemonUnavailable."""
        for known in self._data_plane.mounts():
            staging = self.path(known.volume_id)
            if os.fspath(staging) != known.mount_point:
                continue
            try:
                with claim(known.volume_id):
                    if known.device:
                        self.unstage(known.volume_id)
                    else:  # a publication mounts it anew, also if the daemon does not remember it
                        self._staging.unstage(known.volume_id, staging)
                        bind_mounts.remove_mount_point(staging)
            except (OperationPending, MountError) as error:
                facts = fields(volume_id=known.volume_id, staging_path=known.mount_point, error=str(error))
                logger.info("an inline volume is not unstaged now: it has a call in flight, or is busy", extra=facts)


def _detach_copies(staged: MountEntry, table: MountTable) -> None:
    """Of the staging mount of an inline volume. A container that is started while the volume is mounted has one more in
    each of its volumes that holds kubelet's directory, or the part of it with the staging path. The directory could not
    be removed. Copies in other containers end with the directory."""
    *_, directory, name = Path(staged.mount_point).parts
    for entry in table.entries:
        if entry.device == staged.device and entry.mount_point != staged.mount_point:
            path = Path(entry.mount_point)
            if path.parts[-2:] == (directory, name):
                bind_mounts.unmount(path, lazy=True)
