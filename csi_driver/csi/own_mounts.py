"""Which mounts of the host's table are this driver's, and where they show a volume to a pod."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csi_driver.model.errors import MountPointBusy, NotMounted
from csi_driver.mounts.materialised_views import is_view_of, view_shown_by
from csi_driver.mounts.mount_table import MountEntry, MountTable

FUSE_TYPE = "fuse.hayloft"
"""File system type of the driver's FUSE mounts in the mount table."""

_SUB_PATHS = "volume-subpaths"
"""The directory below that of a pod in which kubelet mounts parts of volumes."""


def is_served(entry: MountEntry | None) -> bool:
    """True for a FUSE mount of this driver."""
    return entry is not None and entry.fs_type == FUSE_TYPE


def is_ours(entry: MountEntry) -> bool:
    """True for a FUSE mount or a materialised view of this driver."""
    return is_served(entry) or view_shown_by(entry) is not None


def require_ours_or_none(path: Path, *, views: bool) -> MountEntry | None:
    """The mount at the path: a FUSE mount or, with ``views``, a materialised view. Raises MountPointBusy for a mount
    that this driver has not made and must not remove."""
    present = MountTable.read().at(path)
    if present is not None and not (is_ours(present) if views else is_served(present)):
        raise MountPointBusy(f"{path}: {present.fs_type} is mounted there, which is not a volume of this driver")
    return present


def not_mounted(path: Path | str) -> NotMounted:
    return NotMounted(
        f"{path}: the daemon reported success, but the mount is not there; is the directory shared between the daemon "
        "and the node plugin (mountPropagation)?"
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Where this node has mounts of the driver, without links."""

    inline_directory: Path
    """Where inline volumes are staged."""
    kubelet_directory: Path | None

    def targets_of(self, volume_id: str, staged: MountEntry, table: MountTable) -> Iterator[MountEntry]:
        """The mounts at target paths of the volume. Mounts of a part of it, and those of containers (``subPath``), are
        none; nor are copies of the staging mount, outside of kubelet's directory."""
        for entry in table.entries:
            if entry.mount_point != staged.mount_point and self._is_target(volume_id, entry, staged):
                yield entry

    def _is_target(self, volume_id: str, entry: MountEntry, staged: MountEntry) -> bool:
        path = Path(entry.mount_point)
        if path.parent == self.inline_directory or _SUB_PATHS in path.parts:
            return False
        if self.kubelet_directory is not None and not path.is_relative_to(self.kubelet_directory):
            return False
        return is_view_of(entry, volume_id) or (entry.device, entry.root) == (staged.device, staged.root)
