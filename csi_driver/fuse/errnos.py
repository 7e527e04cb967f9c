"""The errno for each error. Every leaf of the error tree has a line; a test requires it."""

from __future__ import annotations

import errno

from csi_driver.model import errors as e

ERRNOS: dict[type[e.HayloftError], int] = {
    e.InvalidParameter: errno.EINVAL,
    e.MissingParameter: errno.EINVAL,
    e.UnknownParameter: errno.EINVAL,
    e.UnsupportedUrl: errno.EINVAL,
    e.ReadOnlyVolume: errno.EROFS,
    e.CapacityOutOfRange: errno.EINVAL,
    e.EndpointNotAllowed: errno.EPERM,
    e.IdentityNotAllowed: errno.EPERM,
    e.ViewNotAllowed: errno.EPERM,
    e.AddressNotAllowed: errno.EPERM,
    e.BudgetExceeded: errno.EAGAIN,
    # Not EMFILE, for which an application looks at its own limit; not EAGAIN: it would retry at once, for ever.
    e.DescriptorsExhausted: errno.ENFILE,
    # The snapshot promised these bytes and the store no longer has them: a stale handle, as in NFS. ENOENT would mean
    # that an open file has no name.
    e.ObjectChanged: errno.ESTALE,
    e.ObjectNotFound: errno.ESTALE,
    e.BucketNotFound: errno.ESTALE,
    e.AccessDenied: errno.EACCES,
    e.ObjectArchived: errno.ENODATA,  # "No data available": no permission is missing, and the store works
    # Not EACCES: new credentials are needed, not another mode or owner of the file.
    e.CredentialsRejected: errno.EKEYREJECTED,
    e.EndpointUnreachable: errno.EHOSTUNREACH,
    # Applications treat EIO as "the disk failed" and stop; ETIMEDOUT they print, and some retry.
    e.StoreUnavailable: errno.ETIMEDOUT,
    e.TransientStoreError: errno.ETIMEDOUT,
    e.StoreProtocolError: errno.EIO,
    e.ChecksumMismatch: errno.EIO,
    e.EmptyDataset: errno.ENOENT,
    e.NotADirectory: errno.ENOTDIR,
    e.ManifestInvalid: errno.EIO,
    e.VersionsNotPinned: errno.ESTALE,
    e.InventoryUnusable: errno.EIO,
    # Reads go straight to the store when the cache disk fails, so these are seen only when the store fails too.
    e.CacheDirectoryMissing: errno.EIO,
    e.CacheDirectoryUnusable: errno.EIO,
    e.CacheDirectoryInUse: errno.EIO,
    e.CacheDiskFull: errno.EIO,  # ENOSPC would point users to the wrong disk
    e.CacheOvercommitted: errno.EIO,
    e.CacheDiskFailed: errno.EIO,
    e.ChunkCorrupt: errno.EIO,
    e.MountPointMissing: errno.ENOENT,
    e.MountPointBusy: errno.EBUSY,
    e.NotMounted: errno.ENOTCONN,
    e.FuseUnavailable: errno.ENODEV,
    e.MountFailed: errno.EIO,
    e.ViewUnavailable: errno.EOPNOTSUPP,
    e.VolumeNotFound: errno.ENOENT,
    e.VolumeConflict: errno.EEXIST,
    e.SnapshotNotFound: errno.ENOENT,
    e.SnapshotConflict: errno.EEXIST,
    e.PageTokenInvalid: errno.EINVAL,
    e.OperationPending: errno.EAGAIN,
    e.WarmupUnfinished: errno.EAGAIN,
    e.WarmupFailed: errno.EIO,
    e.RegistryUnavailable: errno.EIO,
    e.KubernetesUnavailable: errno.EIO,
    e.ServiceUnknown: errno.ENOENT,
    e.SocketTaken: errno.EIO,
    e.ProcessStuck: errno.EIO,
    e.DaemonUnavailable: errno.ENOTCONN,
    e.Interrupted: errno.EINTR,
    e.InternalFailure: errno.EIO,
}


def errno_of(error: BaseException) -> int:
    """The errno for an error, by its nearest ancestor in the table; EIO for anything else."""
    for kind in type(error).__mro__:
        number = ERRNOS.get(kind)
        if number is not None:
            return number
    return errno.EIO
