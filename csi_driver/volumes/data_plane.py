"""The interface between the node plugin and the cache daemon.

``daemon/local_data_plane.py`` implements it, ``daemon/daemon_client.py`` calls it over a socket, and tests have an
in-memory implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from csi_driver.model.conditions import Condition
from csi_driver.model.tenant import ADMINISTRATOR, Tenant


@dataclass(frozen=True, slots=True)
class MountRequest:
    """A volume to be mounted at a path. ``attributes`` are the volume context of CSI, unparsed: each process parses it
    once for a call."""

    volume_id: str
    mount_point: str
    attributes: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    tenant: Tenant = ADMINISTRATOR
    republished: bool = False
    """The volume is in use, and kubelet repeats its call from time to time: a warmup that has ended is not repeated
    with it, unless the credentials are others."""
    mount_group: int = 0
    """The group whose the files are shown to be, unless the parameters name one (``gid``): the ``fsGroup`` of the first
    pod. 0: none."""


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """The state of a mounted volume. Byte counts refer to the dataset."""

    volume_id: str
    mount_point: str
    snapshot_id: str
    total_bytes: int
    cached_bytes: int
    file_count: int
    conditions: tuple[Condition, ...] = ()
    """Each once; empty: nothing is wrong."""
    notes: tuple[str, ...] = ()
    """What is to be known of the snapshot, and is no condition: sentences, which do not change."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """As of ``VolumeParameters.to_context``; empty: not known."""
    reserved_bytes: int = 0
    """Of the cache, for the dataset."""
    mount_group: int = 0
    """As in the request that mounted it."""

    @property
    def abnormal(self) -> bool:
        return bool(self.conditions)


@dataclass(frozen=True, slots=True)
class MountHealth:
    """The state of a mount as far as the daemon knows it without asking anything: neither disk, store nor kernel."""

    volume_id: str
    device: str
    """As of ``KnownMount``."""
    total_bytes: int
    file_count: int
    conditions: tuple[Condition, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What is wrong on a node, at one moment."""

    node: tuple[Condition, ...] = ()
    """With the storage of the node."""
    mounts: tuple[MountHealth, ...] = ()
    """Of every mount that the daemon serves, also of those that were unmounted and are in use elsewhere."""


@dataclass(frozen=True, slots=True)
class KnownMount:
    """A FUSE mount of the daemon, or one that was lost: it died, and its volume was not unmounted since."""

    volume_id: str
    mount_point: str
    """Where the daemon mounted it; it may be unmounted there by now, and in use elsewhere."""
    device: str
    """Its identity in the mount table (``MountEntry.device``), also of its bind mounts. Empty: it was lost."""


@dataclass(frozen=True, slots=True)
class DaemonReport:
    """The state of the daemon. ``origin_bytes`` were received from object stores since it started."""

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
    """Running warmups."""
    warmup_bytes: int = 0
    """Fetched by warmups since the daemon started."""
    warmup_memory_read_bytes: int = 0
    """Read from the cache disk into the page cache by warmups since the daemon started."""
    warmup_hot_bytes: int = 0
    """In the page cache for warmups of mounted volumes, when it was counted last."""
    cache_bad_chunks: int = 0
    """Chunks on the cache disk whose checksum was wrong; they were dropped."""
    cache_disk_failures: int = 0
    """Reads, writes and checks of object files that failed."""
    cache_disk_in_use: bool = True
    """False while the cache disk keeps failing and reads bypass it (fallback path: the store)."""
    scrubbed_bytes: int = 0
    checksum_mismatches: int = 0
    """Objects that were received from a store with bytes that do not match their checksum."""
    read_errors: Mapping[str, int] = field(default_factory=dict)
    """Opens and reads that failed, by the name of their errno, such as "EIO"."""
    cache_evicted_objects: int = 0
    cache_free_bytes: int = 0
    """Free on the file system of the cache, as of the last second."""
    cache_free_floor_bytes: int = 0
    """What the cache leaves free of it."""
    cache_inodes: int = 0
    """Of the file system of the cache; 0: it has no fixed number of them."""
    cache_free_inodes: int = 0
    cache_free_floor_inodes: int = 0


class WarmupState(StrEnum):
    """The state of a warmup."""

    NONE = "none"
    """No warmup was requested since the volume was mounted."""
    RUNNING = "running"
    """Fetches, waits for readers, which have priority, or retries a store or disk; the message says which."""
    COMPLETE = "complete"
    """All requested files are cached."""
    FULL = "full"
    """Ended: the rest does not fit into the cache."""
    FAILED = "failed"
    """Ended: some objects could not be fetched."""
    CANCELLED = "cancelled"
    """Stopped by a call."""


@dataclass(frozen=True, slots=True)
class WarmupRequest:
    """Which files of a mounted volume are to be fetched, and the limits of rate and concurrency."""

    volume_id: str
    include: tuple[str, ...] = ()
    """Globs as in the parameter ``include``; none: everything that the volume shows."""
    bandwidth_bytes: int = 0
    """Bytes a second; 0: the volume's ``warmupBandwidth``."""
    concurrency: int = 0
    """Fetches in flight; 0: the volume's ``warmupConcurrency``."""
    into_memory: bool = False
    """The cached files are then read into the page cache, as far as the daemon's share of the memory allows it; those
    of ``warmupMemoryInclude`` if the volume has it."""
    trace: str = ""
    """The path, below the dataset's URL, of a recorded trace: what it names is fetched. Empty: complete files."""
    start_percent: float = 0.0
    """Where among the bytes to begin, from 0 to below 100; what lies before it follows at the end. Nodes that warm one
    dataset at the same time begin at different places, so that each finds in the cluster's cache what others fetched.
    """


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """The progress of a warmup. Totals are 0 until its globs have been matched with the snapshot."""

    volume_id: str
    state: WarmupState = WarmupState.NONE
    include: tuple[str, ...] = ()
    total_bytes: int = 0
    total_files: int = 0
    done_bytes: int = 0
    """Cached bytes of the requested files, including those that readers fetched."""
    done_files: int = 0
    fetched_bytes: int = 0
    """Fetched by this warmup since the daemon started."""
    failed_files: int = 0
    rate_bytes: float = 0.0
    """Bytes a second, over the last seconds."""
    eta_s: float | None = None
    """Seconds until it is complete at that rate; None if unknown."""
    message: str = ""
    memory_bytes: int = 0
    """What was to be read into the page cache; 0: nothing, or its turn has not come."""
    hot_bytes: int = 0
    """How much of that was in the page cache when it was counted last."""


MOST_TRACE_S = 3600.0
"""The longest recording: meanwhile the daemon serves reads that the kernel could do by itself."""


@dataclass(frozen=True, slots=True)
class TraceReport:
    """A recording of reads that has ended."""

    volume_id: str
    content_bytes: int
    """Of the file."""
    files: int = 0
    ranges: int = 0
    read_bytes: int = 0
    truncated: bool = False


class DataPlane(Protocol):
    """All methods block. Each is idempotent and reads the state of mounts from the host's mount table."""

    def mount(self, request: MountRequest) -> VolumeReport:
        """Ensures the FUSE mount, and that it reads with the secrets of the request, unless that has none. Listing a
        dataset for the first time may take minutes.

        Raises RequestError, StoreError, DatasetError, MountError, VolumeConflict (mounted there with other
        attributes, or for another user of the store), DaemonUnavailable.
        """

    def unmount(self, volume_id: str, mount_point: str) -> None:
        """Ensures that the volume is not mounted there. Not mounted is success. Raises MountPointBusy."""

    def publish(self, volume_id: str, target: str) -> bool:
        """Ensures that the target, a directory, shows a materialised view of the mounted volume. False: nothing was
        done, because the caller has to publish the volume through its FUSE mount, or something else is mounted at the
        target. May take seconds for a million files, and waits for a warmup with ``view: materialised``.

        Raises VolumeNotFound, ViewUnavailable, WarmupFailed, OperationPending (retry), MountError, DaemonUnavailable.
        """

    def unpublish(self, volume_id: str, target: str) -> None:
        """Ensures that no view of the volume is mounted at the target, and removes views that are mounted nowhere; the
        volume may be unknown. Raises MountPointBusy."""

    def volume(self, volume_id: str) -> VolumeReport:
        """Raises VolumeNotFound when the volume is not mounted by this daemon."""

    def mounts(self) -> tuple[KnownMount, ...]:
        """All mounts that the daemon serves, and those that were lost."""

    def report(self) -> DaemonReport:
        """Counters and limits."""

    def health(self) -> HealthReport:
        """Answered from memory, at once."""

    def reserve(self, volume_id: str, count_bytes: int) -> VolumeReport:
        """Ensures that a mounted volume with ``cacheReservation`` has at least so many bytes of the cache reserved,
        until it is unmounted, also by later daemons. One without a reservation gets none.

        Raises VolumeNotFound, CapacityOutOfRange (more than the cache may hold), CacheOvercommitted, BudgetExceeded,
        CacheDiskFailed; the reservation is then as before.
        """

    def start_warmup(self, request: WarmupRequest) -> WarmupReport:
        """Starts a warmup in the background; it is resumed after a restart of the daemon. An equal request while it
        runs changes nothing; another request replaces the running warmup; after the end it starts again, and fetches
        what was evicted since. Returns at once.

        Raises VolumeNotFound, InvalidParameter.
        """

    def warmup(self, volume_id: str) -> WarmupReport:
        """The progress of the volume's warmup. Raises VolumeNotFound."""

    def cancel_warmup(self, volume_id: str) -> WarmupReport:
        """Stops the volume's warmup; fetched bytes stay cached. None running is success. Raises VolumeNotFound."""

    def start_trace(self, volume_id: str, seconds: float) -> None:
        """Records the reads of a mounted volume, for so long at the most; files that are opened meanwhile are served by
        the daemon. An earlier recording is dropped. Raises VolumeNotFound, InvalidParameter."""

    def stop_trace(self, volume_id: str) -> TraceReport:
        """Ends the recording; its file stays until the next one, or the unmount. Raises VolumeNotFound,
        InvalidParameter if nothing was recorded."""

    def read_trace(self, volume_id: str, offset: int) -> bytes:
        """A part of the file of the recording, from ``offset`` on; empty at its end. Raises VolumeNotFound."""
