"""Every error that Hayloft raises on purpose.

One tree, two tables: ``fuse/errnos.py`` maps each leaf to an errno, ``rpc/statuses.py`` to a gRPC code. A test walks
the tree and requires every leaf in both. Foreign exceptions (obstore, botocore, fsspec, pyarrow, sqlite3, OSError of
the cache disk) are mapped to these errors where they are raised; no package above floor 1 sees a foreign one.

A message names the object or parameter, the problem and the remedy. It never holds a credential.
"""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
"""Name and password in a URL; greedy, since a password may contain an ``@``."""
_QUERY_OF_URL = re.compile(r"://[^?#]*[?#]")


class HayloftError(Exception):
    """Base of all errors. Not raised itself."""


# -- requests ---------------------------------------------------------------------------------------------------------


class RequestError(HayloftError):
    """The request itself is wrong; repeating it unchanged fails again."""


def _shown(value: object) -> str:
    """Of a URL without user and password, and without what follows a ``?`` or ``#``: people write tokens there."""
    text = _USER_INFO.sub("***@", repr(value))
    found = _QUERY_OF_URL.search(text)
    if found is None:
        return text
    quote = text[-1] if text[-1] in "'\"" else ""
    return f"{text[: found.end()]}…{quote}"


class InvalidParameter(RequestError):
    """A parameter has a value that is not allowed."""

    def __init__(self, field: str, value: object, allowed: str, remedy: str = "") -> None:
        self.field, self.value, self.allowed, self.remedy = field, value, allowed, remedy
        text = f"{field}: {_shown(value)} is not allowed; allowed: {allowed}"
        super().__init__(f"{text}. {remedy}" if remedy else text)


class MissingParameter(RequestError):
    """A required parameter was not given."""

    def __init__(self, field: str, remedy: str = "") -> None:
        self.field = field
        text = f"{field}: is required and was not given"
        super().__init__(f"{text}. {remedy}" if remedy else text)


class UnknownParameter(RequestError):
    """There is no parameter of this name."""

    def __init__(self, name: str, remedy: str) -> None:
        super().__init__(f"{name}: there is no such parameter; {remedy}")


class UnsupportedUrl(RequestError):
    """No store supports the scheme of the dataset's URL."""


class ReadOnlyVolume(RequestError):
    """A write was requested; Hayloft volumes are read-only."""


class CapacityOutOfRange(RequestError):
    """The requested size does not match the size of the dataset."""


class EndpointNotAllowed(RequestError):
    """The operator's policy does not allow the endpoint, bucket or path that a volume names."""


class IdentityNotAllowed(RequestError):
    """The volume has no secret, and the operator's policy does not give it the node's own identity."""


class ViewNotAllowed(RequestError):
    """The operator's policy gives the volume no materialised view."""


class BudgetExceeded(HayloftError):
    """A volume, or its namespace, has used up its share of something that all volumes of the node need."""


# -- the object store -------------------------------------------------------------------------------------------------


class StoreError(HayloftError):
    """The object store, or the connection to it, failed."""


class BucketNotFound(StoreError):
    """The bucket or container does not exist."""


class ObjectNotFound(StoreError):
    """The object does not exist (any more)."""


class AccessDenied(StoreError):
    """The store refuses the request of a known identity (403)."""


class ObjectArchived(StoreError):
    """The object lies in an archive of the store, and has to be restored before it can be read."""


class CredentialsRejected(StoreError):
    """Credentials are missing, wrong or expired (401, ExpiredToken, InvalidAccessKeyId, SignatureDoesNotMatch)."""


class ObjectChanged(StoreError):
    """The object is not the version of the snapshot any more (412, or 416 because it is shorter now)."""


class EndpointUnreachable(StoreError):
    """No usable connection to the endpoint: no such host, connection refused, TLS that cannot be verified."""


class AddressNotAllowed(StoreError):
    """A name resolved to an address, or a store redirected to one, that the operator's policy refuses. Nothing was sent
    to it."""


class TransientStoreError(StoreError):
    """A failure that is worth a retry: a status from 500 on, 429, a reset, a short body, a timeout.

    ``objects/retrying.py`` catches it. Once retries are exhausted it becomes StoreUnavailable, or ``when_exhausted``
    where that says more: no connection until the deadline is EndpointUnreachable.
    """

    def __init__(
        self, message: str, retry_after_s: float | None = None, when_exhausted: type[StoreError] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.when_exhausted = when_exhausted


class StoreUnavailable(StoreError):
    """Retries failed until the deadline."""


class StoreProtocolError(StoreError):
    """An unexpected response of the store: another range, too many bytes, an unreadable listing."""


class ChecksumMismatch(StoreError):
    """The bytes that the store sent do not match its own checksum of the object, twice in a row."""


# -- the dataset ------------------------------------------------------------------------------------------------------


class DatasetError(HayloftError):
    """The dataset cannot be shown as a directory."""


class EmptyDataset(DatasetError):
    """The URL and the globs select no object."""


class NotADirectory(DatasetError):
    """The URL names one object, not a prefix."""


class ManifestInvalid(DatasetError):
    """A stored manifest cannot be read: incomplete, of another format version, or of another snapshot."""


class VersionsNotPinned(DatasetError):
    """A snapshot was requested that pins the version of each object, and the store cannot do that."""


class InventoryUnusable(DatasetError):
    """The inventory that a volume names cannot be its list of objects: of another bucket, incomplete, damaged, or in a
    format that is not known."""


# -- the cache on the node's disk -------------------------------------------------------------------------------------


class CacheError(HayloftError):
    """The node's cache cannot do its work."""


class CacheDirectoryMissing(CacheError):
    """The cache directory does not exist or is not a directory."""


class CacheDirectoryUnusable(CacheError):
    """The cache directory is read-only, not writable, or on a file system that cannot hold a cache (tmpfs)."""


class CacheDirectoryInUse(CacheError):
    """Another daemon uses the cache directory."""


class CacheDiskFull(CacheError):
    """No space is left and nothing may be evicted. Reads continue directly from the store."""


class CacheOvercommitted(CacheError):
    """A volume requests to reserve more of the cache than is available."""


class CacheDiskFailed(CacheError):
    """The disk failed with EIO or a similar error. Reads continue directly from the store."""


class DescriptorsExhausted(CacheError):
    """The process, or the volume, may open no more files."""


class ChunkCorrupt(CacheError):
    """Bytes of a chunk do not match its CRC32C."""


# -- mounts and processes ---------------------------------------------------------------------------------------------


class MountError(HayloftError):
    """A mount could not be made, found or removed."""


class MountPointMissing(MountError):
    """The directory to mount on does not exist and may not be created."""


class MountPointBusy(MountError):
    """Another file system is mounted there, or the mount is in use."""


class NotMounted(MountError):
    """The volume should be mounted there and is not."""


class FuseUnavailable(MountError):
    """/dev/fuse is missing or may not be opened."""


class MountFailed(MountError):
    """The kernel refused the mount for another reason, which the message gives."""


class ViewUnavailable(MountError):
    """A materialised view was requested that this node, or this volume, does not support."""


class VolumeNotFound(HayloftError):
    """No volume has this id."""


class VolumeConflict(HayloftError):
    """A volume of this name, or a mount at this path, exists with other parameters."""


class SnapshotNotFound(HayloftError):
    """No snapshot, or group of snapshots, has this id."""


class SnapshotConflict(HayloftError):
    """A snapshot of this name exists, of another volume or made in another way."""


class PageTokenInvalid(HayloftError):
    """The token of a page is none that this driver gave out; list again from the start."""


class OperationPending(HayloftError):
    """Another call for the same volume is in flight; retry."""


class WarmupUnfinished(HayloftError):
    """The call waits for a warmup that is still running at the call's deadline; retry."""


class WarmupFailed(HayloftError):
    """The call waits for a warmup that ended without having fetched all objects; a retry starts it again."""


class RegistryUnavailable(HayloftError):
    """The registry of volumes and manifests cannot be read or written."""


class KubernetesUnavailable(HayloftError):
    """The API server of the cluster does not answer, or refuses the driver's account."""


class ServiceUnknown(HayloftError):
    """A health check names a service that this process does not serve."""


class SocketTaken(HayloftError):
    """The path of this process's socket leads to that of another process, or to nothing."""


class ProcessStuck(HayloftError):
    """A part of this process that everything else needs does not move any more."""


class DaemonUnavailable(HayloftError):
    """The cache daemon does not answer on its socket."""


class Interrupted(HayloftError):
    """A pending read was aborted because its reader was interrupted."""


class InternalFailure(HayloftError):
    """A defect of Hayloft: an unexpected error, wrapped where it was caught."""
