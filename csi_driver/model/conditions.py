"""What can be wrong with a volume, or with the storage of a node: the one table of conditions.

Both health APIs of CSI are answered from it (``csi/node_health.py``, ``csi/controller_health.py``). A text is constant:
Kubernetes publishes a message that changes only when the set of (status, reason) changes too, and merges events of the
same text. What differs from case to case (which object, how many, which error) is in the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a condition means for a reader."""

    DEGRADED = "degraded"
    """Reads work, more slowly, or except for some objects."""
    INACCESSIBLE = "inaccessible"
    """What is not cached on the node cannot be read."""
    DATA_LOSS = "data loss"
    """Bytes that the volume shows do not exist any more."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table."""

    reason: str
    """A name in CamelCase, unique in the table; it is what processes send to each other, and never changes."""
    severity: Severity
    sentence: str
    remedy: str
    of_node: Severity | None = None
    """Set if it concerns the storage of the node, all volumes and those to come: what it means there."""

    @property
    def message(self) -> str:
        return f"{self.sentence}. {self.remedy}."


_TABLE: dict[str, Condition] = {}


def _row(reason: str, severity: Severity, sentence: str, remedy: str, *, of_node: Severity | None = None) -> Condition:
    condition = Condition(reason, severity, sentence, remedy, of_node)
    _TABLE[reason] = condition
    return condition


_LOG = "the log of the cache daemon of the node names them"

# -- bytes that are gone --

OBJECTS_GONE = _row(
    "ObjectsGone",
    Severity.DATA_LOSS,
    "Objects of the volume's snapshot are not in the store any more, and what is not cached of them cannot be read",
    f"Restore them, or make a volume of a new snapshot; {_LOG}",
)
OBJECTS_CHANGED = _row(
    "ObjectsChanged",
    Severity.DATA_LOSS,
    "Objects were replaced in the store since the volume's snapshot, and what is not cached of their earlier versions "
    "cannot be read",
    f"Make a volume of a new snapshot; {_LOG}",
)
OBJECTS_DAMAGED = _row(
    "ObjectsDamaged",
    Severity.DATA_LOSS,
    "The store sends objects with bytes that do not match their checksum, and reads of them fail",
    f"Check the store, and put the objects anew; {_LOG}",
)

# -- nothing more can be read --

MOUNT_DEAD = _row(
    "MountDead",
    Severity.INACCESSIBLE,
    "The mount is dead (ENOTCONN): its cache daemon ended without a keeper, or the mount was aborted",
    "Restart the pod, or its containers once the volume is published again",
)
CREDENTIALS_REJECTED = _row(
    "CredentialsRejected",
    Severity.INACCESSIBLE,
    "The store, or the service that gives out credentials, rejects those of the volume; what is not cached cannot be "
    "read",
    "Renew the Secret of the volume, or check the role of the driver; the log of the cache daemon has the answer",
)
ACCESS_DENIED = _row(
    "AccessDenied",
    Severity.INACCESSIBLE,
    "The store knows the credentials of the volume and refuses their reads",
    "Grant them the read of the dataset's objects; the log of the cache daemon names what is missing",
)
BUCKET_NOT_FOUND = _row(
    "BucketNotFound",
    Severity.INACCESSIBLE,
    "The bucket of the volume does not exist any more; what is not cached cannot be read",
    "Restore the bucket, or make a volume of another dataset",
)
ADDRESS_NOT_ALLOWED = _row(
    "AddressNotAllowed",
    Severity.INACCESSIBLE,
    "The endpoint of the volume leads to an address that the operator's policy refuses",
    "Correct the endpoint, or have the operator allow the address",
)
STORE_UNREACHABLE = _row(
    "StoreUnreachable",
    Severity.INACCESSIBLE,
    "No usable connection to the endpoint of the volume's store is made; what is not cached cannot be read",
    "Check endpoint, network, proxy and certificates; the log of the cache daemon has the error",
)
STORE_FAILING = _row(
    "StoreFailing",
    Severity.INACCESSIBLE,
    "The store fails, or does not answer, until the deadline of reads; what is not cached cannot be read",
    "Check the store; reads succeed again when it does",
)
SETTINGS_REFUSED = _row(
    "SettingsRefused",
    Severity.INACCESSIBLE,
    "The store of the volume cannot be opened with its parameters and Secret",
    "Correct them; the log of the cache daemon names what is refused",
)
SNAPSHOT_MISSING = _row(
    "SnapshotMissing",
    Severity.INACCESSIBLE,
    "The registry has no list of the volume's objects any more, so that no further node can mount it",
    "Restore the registry, or make the volume anew",
)

# -- more slowly, or not everything --

OBJECTS_FORBIDDEN = _row(
    "ObjectsForbidden",
    Severity.DEGRADED,
    "The store does not let the credentials of the volume read some of its objects",
    f"Grant the read, or exclude the objects; {_LOG}",
)
OBJECTS_ARCHIVED = _row(
    "ObjectsArchived",
    Severity.DEGRADED,
    "Objects that were to be read lie in an archive of the store",
    f"Restore them in the store, or exclude them; {_LOG}",
)
READS_FAILING = _row(
    "ReadsFailing",
    Severity.DEGRADED,
    "Reads of some objects fail",
    "Look at the log of the cache daemon of the node, which has objects and errors",
)
STORE_SLOW = _row(
    "StoreSlow",
    Severity.DEGRADED,
    "Requests to the store have waited long for a byte; reads of what is not cached are slow",
    "Check the store and the network to it",
)
READING_FROM_MIRRORS = _row(
    "ReadingFromMirrors",
    Severity.DEGRADED,
    "The bucket of the volume does not answer; mirrors are read instead",
    "Check the store and the network to it; the log of the cache daemon has the error",
)
MIRROR_FAILING = _row(
    "MirrorFailing",
    Severity.DEGRADED,
    "A mirror of the volume does not answer, or refuses its credentials; the volume is read from its other places",
    "Check the mirror, or leave it out; the log of the cache daemon names it, with the error",
)
MIRROR_DIFFERS = _row(
    "MirrorDiffers",
    Severity.DEGRADED,
    "A place of the volume lacks objects of its snapshot, has other versions of them, or nothing shows that they are "
    "the same; they are read from another place",
    f"Copy the dataset there again, or leave the mirror out; {_LOG}",
)
WARMUP_FAILED = _row(
    "WarmupFailed",
    Severity.DEGRADED,
    "The warmup of the volume ended without having fetched all objects",
    "Look at its state with hayloft warm on the node; publishing the volume anew starts it again",
)
CACHE_TOO_SMALL = _row(
    "CacheTooSmall",
    Severity.DEGRADED,
    "The warmup of the volume ended early: the rest does not fit into the cache of the node",
    "Raise the limit of the cache, warm a part of the volume, or unmount others",
)
VIEW_DAMAGED = _row(
    "ViewDamaged",
    Severity.DEGRADED,
    "Files that a materialised view shows turned out to be damaged on the cache disk",
    "Start the pods that use the volume anew",
)
TOO_MANY_OPEN_FILES = _row(
    "TooManyOpenFiles",
    Severity.DEGRADED,
    "The volume's share of the daemon's open files is used up, and opens of further files fail",
    "Close files, or raise the limit of open files (RLIMIT_NOFILE) of the daemon",
)
KERNEL_TIMEOUT_SHORT = _row(
    "KernelTimeoutShort",
    Severity.DEGRADED,
    "The kernel aborts a whole mount when one of its requests takes longer than fs.fuse.max_request_timeout, and reads "
    "of this volume may",
    "Set it to zero on the node, or above the volume's deadline and requestTimeout",
)

# -- the node --

CACHE_DAEMON_UNAVAILABLE = _row(
    "CacheDaemonUnavailable",
    Severity.DEGRADED,
    "The cache daemon of the node does not answer: volumes cannot be mounted, and reads of files that are not passed "
    "through wait for it",
    "It is restarted by itself; if that does not help, look at the log of its container",
    of_node=Severity.INACCESSIBLE,
)
CACHE_DISK_FAILING = _row(
    "CacheDiskFailing",
    Severity.DEGRADED,
    "The cache disk of the node keeps failing and is not used; reads go straight to the store",
    "Look at the kernel's log of the node and replace the disk",
    of_node=Severity.DEGRADED,
)
CACHE_DISK_FULL = _row(
    "CacheDiskFull",
    Severity.DEGRADED,
    "The file system of the cache has less free space than the cache leaves, and nothing more may be evicted; reads go "
    "straight to the store",
    "Free the disk, or give the cache one of its own",
    of_node=Severity.DEGRADED,
)
CACHE_INODES_EXHAUSTED = _row(
    "CacheInodesExhausted",
    Severity.DEGRADED,
    "The file system of the cache has no inodes left for more objects, and nothing more may be evicted; reads go "
    "straight to the store",
    "Make the file system with more inodes, or remove files of others from it",
    of_node=Severity.DEGRADED,
)
KEEPER_UNAVAILABLE = _row(
    "KeeperUnavailable",
    Severity.DEGRADED,
    "The keeper of the node does not answer: mounts do not outlive a restart of the cache daemon until it does",
    "Look at the pod of the keeper on the node",
    of_node=Severity.DEGRADED,
)
UNKNOWN = _row(
    "UnknownCondition",
    Severity.DEGRADED,
    "The cache daemon of the node reports a condition that the node plugin, of an earlier version, does not know",
    "Look at the log of the cache daemon, and upgrade the node plugin",
)

ALL: tuple[Condition, ...] = tuple(_TABLE.values())
"""In the order in which they are reported: the worst first."""


def of_reason(reason: str) -> Condition:
    """``UNKNOWN`` for a reason that is not in the table."""
    return _TABLE.get(reason, UNKNOWN)


def distinct(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Each once, in the order of the table: the API server refuses a pod's status with two entries of one status and
    reason, again and again."""
    found = set(conditions)
    return tuple(condition for condition in ALL if condition in found)
