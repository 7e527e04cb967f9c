"""What the node plugin asks of the cache daemon. ``daemon/data_plane.py`` does it, ``daemon/client.py`` asks for it
over a socket, and tests use an in-memory twin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MountWish:
    """A volume that should be mounted at a path. ``attributes`` are the volume context as CSI gave it."""

    volume_id: str
    mount_point: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """The state of a mounted volume. Byte counts are of the dataset."""

    volume_id: str
    mount_point: str
    snapshot_id: str
    total_bytes: int
    cached_bytes: int
    file_count: int
    abnormal: bool
    message: str


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """The state of the daemon. ``origin_bytes`` counts what came from object stores since it started."""

    version: str
    process_id: int
    mounts: int
    passthrough: bool
    cache_limit_bytes: int
    cache_used_bytes: int
    origin_bytes: int
    origin_requests: int
    resident_bytes: int


class DataPlane(Protocol):
    """All methods block; each is idempotent and decides by the host's mount table."""

    def mount(self, wish: MountWish) -> VolumeReport:
        """Ensures the FUSE mount. Listing a dataset for the first time may take minutes.

        Raises RequestError, StoreError, DatasetError, MountError, VolumeConflict (mounted there with other
        attributes), DaemonUnavailable.
        """

    def unmount(self, volume_id: str, mount_point: str) -> None:
        """Ensures that it is not mounted there. Not mounted is success. Raises MountPointBusy."""

    def volume(self, volume_id: str) -> VolumeReport:
        """Raises VolumeNotFound when the volume is not mounted by this daemon."""

    def report(self) -> DaemonReport:
        """Counters and limits."""
