"""Every error that Hayloft raises on purpose.

One tree, two tables: ``fuse/errnos.py`` gives each leaf an errno, ``rpc/statuses.py`` a gRPC code. A test walks the
tree and requires every leaf in both. Foreign exceptions (obstore, botocore, fsspec, pyarrow, sqlite3, OSError of the
cache disk) are turned into one of these at the edge where they arise; nothing above floor 1 sees a foreign one.

A message names the thing, says what is wrong with it and what to do. It never holds a credential.
"""

from __future__ import annotations


class HayloftError(Exception):
    """Base of all errors of this package. Not raised itself."""


# -- what the user asked for ------------------------------------------------------------------------------------------


class RequestError(HayloftError):
    """The request itself is wrong; asking again in the same words will not help."""


class InvalidParameter(RequestError):
    """A parameter has a value that is not allowed."""

    def __init__(self, field: str, value: object, allowed: str, remedy: str = "") -> None:
        self.field, self.value, self.allowed = field, value, allowed
        text = f"{field}: {value!r} is not allowed; allowed: {allowed}"
        super().__init__(f"{text}. {remedy}" if remedy else text)


class MissingParameter(RequestError):
    """A parameter that is required was not given."""

    def __init__(self, field: str, remedy: str = "") -> None:
        self.field = field
        text = f"{field}: is required and was not given"
        super().__init__(f"{text}. {remedy}" if remedy else text)


class UnsupportedUrl(RequestError):
    """The dataset's URL is of a kind that no store implementation reads."""


class ReadOnlyVolume(RequestError):
    """Somebody asked to write. Hayloft volumes are read-only."""


class CapacityOutOfRange(RequestError):
    """The size asked for and the size of the dataset do not go together."""


class EndpointNotAllowed(RequestError):
    """The endpoint is not on the allow-list of the driver's settings."""


# -- the object store -------------------------------------------------------------------------------------------------


class StoreError(HayloftError):
    """The object store, or the way to it, failed."""


class BucketNotFound(StoreError):
    """The bucket or container does not exist."""


class ObjectNotFound(StoreError):
    """The object does not exist (any more)."""


class AccessDenied(StoreError):
    """The store knows who asks and refuses (403)."""


class CredentialsRejected(StoreError):
    """Credentials are missing, wrong or expired (401, ExpiredToken, InvalidAccessKeyId, SignatureDoesNotMatch)."""


class ObjectChanged(StoreError):
    """The object is not the version that the snapshot names (412, or 416 because it shrank)."""


class EndpointUnreachable(StoreError):
    """Nothing answers at the endpoint: no such host, connection refused, TLS that cannot be verified."""


class TransientStoreError(StoreError):
    """A failure that is worth a retry: 429, 500, 502, 503, 504, a reset, a short body, a timeout.

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
    """Retries were used up before the deadline."""


class StoreProtocolError(StoreError):
    """The store answered with what was not asked for: another range, too many bytes, an unreadable listing."""


class ChecksumMismatch(StoreError):
    """What the store sends is not what its own checksum of the object says, twice in a row."""


# -- the dataset ------------------------------------------------------------------------------------------------------


class DatasetError(HayloftError):
    """The dataset cannot be shown as a directory."""


class EmptyDataset(DatasetError):
    """The URL and the globs select no object."""


class NotADirectory(DatasetError):
    """The URL names one object, not a prefix."""


class ManifestInvalid(DatasetError):
    """A stored manifest cannot be read: torn, of another format version, or of another snapshot."""


# -- the cache on the node's disk -------------------------------------------------------------------------------------


class CacheError(HayloftError):
    """The node's cache cannot do its work."""


class CacheDirectoryMissing(CacheError):
    """The cache directory does not exist or is not a directory."""


class CacheDirectoryUnusable(CacheError):
    """The cache directory is read-only, not ours to write, or on a file system that cannot hold a cache (tmpfs)."""


class CacheDirectoryInUse(CacheError):
    """Another daemon holds the cache directory."""


class CacheDiskFull(CacheError):
    """No room is left and nothing may be evicted. Reads go on straight from the store."""


class CacheOvercommitted(CacheError):
    """A volume asks to reserve more of the cache than is left."""


class CacheDiskFailed(CacheError):
    """The disk answered EIO or the like. Reads go on straight from the store."""


class ChunkCorrupt(CacheError):
    """Bytes of a chunk do not match its CRC32C."""


# -- mounts and processes ---------------------------------------------------------------------------------------------


class MountError(HayloftError):
    """A mount could not be made, found or removed."""


class MountPointMissing(MountError):
    """The directory to mount on does not exist and may not be made."""


class MountPointBusy(MountError):
    """Something else is mounted there, or the mount is in use."""


class NotMounted(MountError):
    """The volume should be mounted there and is not."""


class FuseUnavailable(MountError):
    """/dev/fuse is missing or may not be opened."""


class MountFailed(MountError):
    """The kernel refused the mount for another reason, which the message gives."""


class ViewUnavailable(MountError):
    """A materialised view was asked for, and this node, or this volume, cannot have one."""


class VolumeNotFound(HayloftError):
    """No volume has this id."""


class VolumeConflict(HayloftError):
    """A volume of this name, or a mount at this path, exists with other parameters."""


class OperationPending(HayloftError):
    """Another call for the same volume is under way; ask again."""


class WarmupUnfinished(HayloftError):
    """The call waits for a warmup that goes on and is not done within the call's deadline; ask again."""


class WarmupFailed(HayloftError):
    """The call waits for a warmup that ended without having fetched everything; asking again begins it anew."""


class RegistryUnavailable(HayloftError):
    """The registry of volumes and manifests cannot be read or written."""


class DaemonUnavailable(HayloftError):
    """The cache daemon does not answer on its socket."""


class Interrupted(HayloftError):
    """A parked read was given up because its reader was interrupted."""


class InternalFailure(HayloftError):
    """A defect of Hayloft: an exception that nobody foresaw, wrapped at the edge."""
