"""What the node plugin asks of the cache daemon.

``daemon/local_data_plane.py`` does it, ``daemon/daemon_client.py`` asks for it over a socket, and tests use an
in-memory twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MountRequest:
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
    warmups: int = 0
    """That run now."""
    warmup_bytes: int = 0
    """What warmups brought since it started."""
    cache_bad_chunks: int = 0
    """Chunks on the cache disk that were not what was written; they were dropped."""
    cache_disk_failures: int = 0
    """Reads, writes and checks of object files that failed."""
    cache_disk_in_use: bool = True
    """False while the cache disk keeps failing and reads go straight to the store."""
    scrubbed_bytes: int = 0
    checksum_mismatches: int = 0
    """Objects that came from a store with other bytes than their checksum says."""


class WarmupState(StrEnum):
    """Where a warmup is."""

    NONE = "none"
    """None was asked for since the volume was mounted."""
    RUNNING = "running"
    """It fetches, or makes way for readers, or waits for a store or disk that fails; the message says so."""
    COMPLETE = "complete"
    """Everything it was asked for is on the node."""
    FULL = "full"
    """It stopped: the rest does not fit into the cache."""
    FAILED = "failed"
    """It ended, and some objects could not be fetched."""
    CANCELLED = "cancelled"
    """Somebody stopped it."""


@dataclass(frozen=True, slots=True)
class WarmupRequest:
    """What of a mounted volume should be fetched, and how fast."""

    volume_id: str
    include: tuple[str, ...] = ()
    """Globs as in the parameter ``include``; none: everything that the volume shows."""
    bandwidth_bytes: int = 0
    """Bytes a second; 0: what the volume's ``warmupBandwidth`` says."""
    concurrency: int = 0
    """Fetches at a time; 0: what the volume's ``warmupConcurrency`` says."""


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """How far a warmup is. Totals are 0 until its globs have been matched with the snapshot."""

    volume_id: str
    state: WarmupState = WarmupState.NONE
    include: tuple[str, ...] = ()
    total_bytes: int = 0
    total_files: int = 0
    done_bytes: int = 0
    """On the node, whoever fetched them."""
    done_files: int = 0
    fetched_bytes: int = 0
    """By this warmup, since the daemon started."""
    failed_files: int = 0
    rate_bytes: float = 0.0
    """Bytes a second that were fetched in the last seconds."""
    eta_s: float | None = None
    """Seconds until it is complete at that rate; None if that cannot be said."""
    message: str = ""

    @property
    def whole(self) -> bool:
        """True if the entire volume was asked for and is on the node."""
        return self.state is WarmupState.COMPLETE and not self.include


class DataPlane(Protocol):
    """All methods block; each is idempotent and decides by the host's mount table."""

    def mount(self, wish: MountRequest) -> VolumeReport:
        """Ensures the FUSE mount. Listing a dataset for the first time may take minutes.

        Raises RequestError, StoreError, DatasetError, MountError, VolumeConflict (mounted there with other
        attributes), DaemonUnavailable.
        """

    def unmount(self, volume_id: str, mount_point: str) -> None:
        """Ensures that it is not mounted there. Not mounted is success. Raises MountPointBusy."""

    def publish(self, volume_id: str, target: str) -> bool:
        """Ensures that the target, a directory, shows a materialised view of the mounted volume. False: nothing was
        done, because the volume shall or has to be published through its FUSE mount, or something else is mounted at
        the target. May take seconds for a million files, and waits for a warmup if the volume asks for that.

        Raises VolumeNotFound, ViewUnavailable, WarmupFailed, OperationPending (ask again), MountError,
        DaemonUnavailable.
        """

    def unpublish(self, volume_id: str, target: str) -> None:
        """Ensures that no view of the volume is mounted at the target, and frees views that are mounted nowhere; the
        volume need not be known. Raises MountPointBusy."""

    def volume(self, volume_id: str) -> VolumeReport:
        """Raises VolumeNotFound when the volume is not mounted by this daemon."""

    def report(self) -> DaemonReport:
        """Counters and limits."""

    def start_warmup(self, wish: WarmupRequest) -> WarmupReport:
        """Sees to it that what is wished is fetched in the background, also after a restart of the daemon. The same
        wish while it runs changes nothing; another wish takes the place of one that runs; one that has ended begins
        again, and fetches what has left the cache since. Returns at once.

        Raises VolumeNotFound, InvalidParameter.
        """

    def warmup(self, volume_id: str) -> WarmupReport:
        """How far it is. Raises VolumeNotFound."""

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        """Ends it; what was fetched stays. None running is success. Raises VolumeNotFound."""
