"""What the operator of a node asks the cache daemon, by the command ``hayloft``.

``daemon/local_node_operations.py`` answers, ``daemon/operations_client.py`` asks over a socket. Work on many files is
done in steps, so that no call takes longer than about a second, a command can be interrupted, and readers are not
delayed: the caller repeats the call from ``next_row`` on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from csi_driver.model.conditions import Condition
from csi_driver.volumes.data_plane import DaemonReport, VolumeReport, WarmupReport


@dataclass(frozen=True, slots=True)
class VolumeStatus:
    """A mounted volume, and what is known of its mount."""

    volume: VolumeReport
    warmup: WarmupReport
    counted: bool
    """Whether ``volume.cached_bytes`` is known: the files of a large volume are counted in the background."""
    pinned: bool
    namespace: str
    """Empty: not known, or of an administrator."""
    inline: bool
    url: str
    endpoint: str
    device: str
    """As of ``KnownMount``."""
    passthrough: bool
    """Whether complete files are read by the kernel itself."""
    store_wait_s: float
    """As of ``ReadThroughCache.store_wait_s``."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The daemon, its cache, and its volumes. Counters start at zero with the daemon."""

    report: DaemonReport
    conditions: tuple[Condition, ...]
    """Of the node."""
    volumes: tuple[VolumeStatus, ...]
    cache_directory: str
    cache_file_system: str
    cache_shared_with: str
    """What the cache shares its disk with; empty: with nothing that Kubernetes needs."""
    uptime_s: float
    opened_bytes: int
    """Sizes of the files that readers opened, each time; not of small files that were open up to 5 s before."""
    fetched_for_readers_bytes: int
    """Received from stores, but for warmups."""
    unverified_files: bool
    """Whether object files are still to be verified after a crash of the machine."""
    passthrough_allowed: bool
    """The flag ``--passthrough`` of the daemon."""

    @property
    def hit_ratio(self) -> float | None:
        """The share of the opened bytes that was not fetched for readers; None: nothing was opened."""
        if not self.opened_bytes:
            return None
        return max(0.0, 1 - self.fetched_for_readers_bytes / self.opened_bytes)


@dataclass(frozen=True, slots=True)
class FileRows:
    """Files [start, stop) in the order of the volume's manifest."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory."""

    name: bytes
    is_directory: bool
    size_bytes: int
    """Of a directory: of all files below it."""
    cached_bytes: int | None
    """None: to be counted, by ``count_cached`` of ``rows``."""
    rows: FileRows
    """The files below a directory; of a file: itself."""


@dataclass(frozen=True, slots=True)
class DirectoryPage:
    """Some entries of a directory, subdirectories first; of a file: itself."""

    snapshot_id: str
    """What rows are of. A call with those of another snapshot is refused."""
    entries: tuple[Entry, ...]
    next_cookie: int
    """0: no further page."""
    rows: FileRows
    """Of all pages."""
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """Files from the first row of a request to ``next_row``."""

    cached_bytes: int
    complete_files: int
    next_row: int
    total_bytes: int = 0
    """Sizes of the counted files; 0 also of a daemon that does not tell."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """Files from the first row of a request to ``next_row``. Those that are open, or that a view shows, are kept."""

    evicted_bytes: int
    evicted_files: int
    kept_bytes: int
    kept_files: int
    next_row: int


class FindingKind(StrEnum):
    """What can be wrong with a file."""

    DAMAGED = "damaged"
    """Cached bytes do not match their CRC; they were dropped."""
    CHANGED = "changed"
    """The object in the store has another ETag or size than the volume's snapshot."""
    MISSING = "missing"
    """The store has no such object any more."""
    FORBIDDEN = "forbidden"
    """The store does not let the volume's credentials read it."""
    UNREADABLE = "unreadable"
    """The store gives another error."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one file."""

    path: bytes
    kind: FindingKind
    bad_chunks: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    """Files from the first row of a request to ``next_row``."""

    checked_bytes: int
    """Read from the cache and compared with their CRCs."""
    checked_files: int
    """Those with cached bytes."""
    compared_files: int
    """With the store."""
    findings: tuple[Finding, ...]
    next_row: int


@dataclass(frozen=True, slots=True)
class VolumeActivity:
    """What the kernel has open of a volume: inode numbers in its mount, 5,000 of each kind at the most."""

    volume_id: str
    device: str
    passed_through: tuple[int, ...]
    """Read by the kernel itself: the daemon sees their opens, and no read."""
    served: tuple[int, ...]
    without_opens: bool
    """The kernel opens files without telling the daemon, which sees only reads of what is not in the page cache."""
    cached_bytes: int
    store_wait_s: float


@dataclass(frozen=True, slots=True)
class NodeActivity:
    """Of this moment."""

    report: DaemonReport
    volumes: tuple[VolumeActivity, ...] = field(default=())


class NodeOperations(Protocol):
    """All methods block, for about a second at the most. Those that name a volume raise VolumeNotFound; those that name
    rows raise VolumeConflict if these are of another snapshot."""

    def status(self) -> NodeStatus:
        """The daemon, its cache, and its volumes."""

    def list_directory(self, volume_id: str, path: bytes, cookie: int = 0) -> DirectoryPage:
        """Raises InvalidParameter if the volume has no such path."""

    def count_cached(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Counted:
        """Counts some of the files, in small steps with pauses."""

    def evict(self, volume_id: str, snapshot_id: str, rows: FileRows) -> Evicted:
        """Removes some of the files from the cache. Raises VolumeConflict for a pinned volume, CacheDiskFailed."""

    def set_pinned(self, volume_id: str, pinned: bool) -> VolumeStatus:
        """Reserves the cache for all bytes of the volume, until it is unmounted or unpinned, also by later daemons.
        Fetches nothing. Raises CapacityOutOfRange (more than the cache may hold), CacheOvercommitted, CacheDiskFailed;
        the reservation is then as before."""

    def verify(self, volume_id: str, snapshot_id: str, rows: FileRows, *, origin: bool) -> Verified:
        """Reads the cached bytes of some of the files; drops those that are damaged, so that they are fetched again.
        ``origin``: asks the store for each file, too. Raises CacheDiskFailed, and StoreError if the store answers no
        request."""

    def activity(self) -> NodeActivity:
        """What is open, and counters."""
