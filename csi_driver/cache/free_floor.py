"""What the cache leaves free on its file system, for manifests and state, and for kubelet where they share a disk.

kubelet evicts pods when less than 10 % of the disk of its own directory is free, or 15 % of that of the container
images, or 5 % of the inodes of either; and it deletes images when less than 15 % is free, until 20 % is. (Its defaults
for ``evictionHard``, ``imageGCHighThresholdPercent`` and ``imageGCLowThresholdPercent``.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from csi_driver.cache.disk import DiskSpace
from csi_driver.settings import GIB

SHARED_SHARE = 0.2
"""Of a disk that kubelet or the images share: as much as kubelet leaves free itself when it deletes images."""

KUBELET_SHARE = 0.15
"""The highest of kubelet's thresholds: below it the node is under disk pressure."""

OWN_SHARE = 0.1
"""Of a disk of its own, if that is less than 1 GiB."""

INODE_SHARE = 0.1
"""Of the inodes, on every disk: twice kubelet's threshold. A mount takes four, a view one for each directory."""

_TRIES = 8


@dataclass(frozen=True, slots=True)
class FreeFloor:
    """What stays free. ``shared_with`` names the neighbour that the cache shares its file system with, or is empty."""

    count_bytes: int
    shared_with: str = ""
    is_below_kubelets: bool = False
    """The operator's floor is so low that kubelet evicts pods before the cache stops growing."""

    @staticmethod
    def inodes(space: DiskSpace) -> int:
        """Computed anew each time: XFS has as many inodes as fit into its free space at the moment."""
        return ceil(space.total_inodes * INODE_SHARE)


def free_floor(
    directory: Path, requested_bytes: int | None, kubelet_directory: Path | None, root: Path = Path("/")
) -> FreeFloor:
    """For the cache at ``directory``; without a request as much as the disk's use demands. ``root`` is that of this
    process. Raises OSError."""
    total_bytes = DiskSpace.of(directory).total_bytes
    neighbour = "" if kubelet_directory is None else _neighbour(directory, kubelet_directory, root)
    if requested_bytes is not None:
        below = bool(neighbour) and requested_bytes < total_bytes * KUBELET_SHARE
        return FreeFloor(requested_bytes, neighbour, below)
    if neighbour:
        return FreeFloor(int(total_bytes * SHARED_SHARE), neighbour)
    return FreeFloor(min(GIB, int(total_bytes * OWN_SHARE)))


def _neighbour(directory: Path, kubelet_directory: Path, root: Path) -> str:
    if not kubelet_directory.is_dir():
        return ""  # no node of a cluster
    if shares_disk(directory, kubelet_directory):
        return f"kubelet ({kubelet_directory})"
    # The root of a container lies on the disk of the images; that of a host usually as well.
    return "the container images" if shares_disk(directory, root) else ""


def shares_disk(one: Path, other: Path) -> bool:
    """Whether two directories have the space of one file system. Raises OSError."""
    if os.stat(one).st_dev == os.stat(other).st_dev:
        return True
    # Subvolumes of btrfs have a device each, and so has overlayfs, the root of a container; both report the space of
    # the file system below. Equal to the block, while nothing is written in between: the same.
    for _ in range(_TRIES):
        before, there, after = DiskSpace.of(one), DiskSpace.of(other), DiskSpace.of(one)
        if before == after:
            return there == before
    return False
