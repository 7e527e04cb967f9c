"""Errors as gRPC statuses: the one table of them, and how the class of an error is passed through a status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MappingProxyType

import grpc

from csi_driver.model import errors
from csi_driver.model.errors import HayloftError

Code = grpc.StatusCode

STATUS_OF: MappingProxyType[type[HayloftError], grpc.StatusCode] = MappingProxyType(
    {
        errors.InvalidParameter: Code.INVALID_ARGUMENT,
        errors.MissingParameter: Code.INVALID_ARGUMENT,
        errors.UnknownParameter: Code.INVALID_ARGUMENT,
        errors.UnsupportedUrl: Code.INVALID_ARGUMENT,
        errors.ReadOnlyVolume: Code.INVALID_ARGUMENT,
        errors.CapacityOutOfRange: Code.OUT_OF_RANGE,
        errors.EndpointNotAllowed: Code.PERMISSION_DENIED,
        errors.IdentityNotAllowed: Code.PERMISSION_DENIED,
        errors.ViewNotAllowed: Code.PERMISSION_DENIED,
        errors.AddressNotAllowed: Code.PERMISSION_DENIED,
        errors.BudgetExceeded: Code.RESOURCE_EXHAUSTED,
        errors.BucketNotFound: Code.NOT_FOUND,
        errors.ObjectNotFound: Code.NOT_FOUND,
        errors.AccessDenied: Code.PERMISSION_DENIED,
        errors.ObjectArchived: Code.FAILED_PRECONDITION,
        errors.CredentialsRejected: Code.UNAUTHENTICATED,
        errors.ObjectChanged: Code.FAILED_PRECONDITION,
        errors.EndpointUnreachable: Code.UNAVAILABLE,
        errors.TransientStoreError: Code.UNAVAILABLE,
        errors.StoreUnavailable: Code.UNAVAILABLE,
        errors.StoreProtocolError: Code.INTERNAL,
        errors.ChecksumMismatch: Code.DATA_LOSS,
        errors.EmptyDataset: Code.NOT_FOUND,
        errors.NotADirectory: Code.INVALID_ARGUMENT,
        errors.ManifestInvalid: Code.INTERNAL,
        errors.VersionsNotPinned: Code.FAILED_PRECONDITION,
        errors.InventoryUnusable: Code.FAILED_PRECONDITION,
        errors.CacheDirectoryMissing: Code.FAILED_PRECONDITION,
        errors.CacheDirectoryUnusable: Code.FAILED_PRECONDITION,
        errors.CacheDirectoryInUse: Code.FAILED_PRECONDITION,
        errors.CacheDiskFull: Code.RESOURCE_EXHAUSTED,
        errors.CacheOvercommitted: Code.RESOURCE_EXHAUSTED,
        errors.DescriptorsExhausted: Code.RESOURCE_EXHAUSTED,
        errors.CacheDiskFailed: Code.INTERNAL,
        errors.ChunkCorrupt: Code.INTERNAL,
        errors.MountPointMissing: Code.FAILED_PRECONDITION,
        errors.MountPointBusy: Code.FAILED_PRECONDITION,
        errors.NotMounted: Code.FAILED_PRECONDITION,
        errors.FuseUnavailable: Code.FAILED_PRECONDITION,
        errors.MountFailed: Code.INTERNAL,
        errors.ViewUnavailable: Code.FAILED_PRECONDITION,
        errors.VolumeNotFound: Code.NOT_FOUND,
        errors.VolumeConflict: Code.ALREADY_EXISTS,
        errors.SnapshotNotFound: Code.NOT_FOUND,
        errors.SnapshotConflict: Code.ALREADY_EXISTS,
        errors.PageTokenInvalid: Code.ABORTED,
        errors.OperationPending: Code.ABORTED,
        errors.WarmupUnfinished: Code.ABORTED,
        # Not FAILED_PRECONDITION: kubelet reads that as "nothing was staged" and would never unstage the volume.
        errors.WarmupFailed: Code.UNAVAILABLE,
        errors.RegistryUnavailable: Code.UNAVAILABLE,
        errors.KubernetesUnavailable: Code.UNAVAILABLE,
        errors.ServiceUnknown: Code.NOT_FOUND,  # by the health-checking protocol of gRPC
        errors.SocketTaken: Code.FAILED_PRECONDITION,  # to a probe: the plugin is not healthy, restart it
        errors.ProcessStuck: Code.UNAVAILABLE,
        errors.DaemonUnavailable: Code.UNAVAILABLE,
        errors.Interrupted: Code.CANCELLED,
        errors.InternalFailure: Code.INTERNAL,
    }
)
"""Every leaf of the error tree. A caller may retry the same call after UNAVAILABLE, ABORTED and RESOURCE_EXHAUSTED;
with any other code a retry fails until a user or operator has changed something."""

ERROR_METADATA = "hayloft-error"
"""Key of the trailing metadata that carries the class. CSI forbids status details."""

_LONGEST_MESSAGE = 2000
"""gRPC refuses metadata of more than 8 KiB, and percent-encoding may triple a message."""


def status_of(error: HayloftError) -> grpc.StatusCode:
    """The code of the error's class, or of the nearest base class in the table."""
    for base in type(error).__mro__:
        if base in STATUS_OF:
            return STATUS_OF[base]
    return Code.INTERNAL


def message_of(error: BaseException, mask: Callable[[str], str] = str) -> str:
    """The error's text, masked, as valid UTF-8 of at most ``_LONGEST_MESSAGE`` characters."""
    text = mask(str(error)).encode("utf-8", "backslashreplace").decode("utf-8")  # masked before a secret may be cut
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def leaves(base: type[HayloftError] = HayloftError) -> Iterator[type[HayloftError]]:
    """All classes of ``model/errors.py`` below ``base`` that have no subclass there."""
    below = [cls for cls in base.__subclasses__() if cls.__module__ == errors.__name__]
    if not below and base is not HayloftError:
        yield base
    for cls in below:
        yield from leaves(cls)


def error_from(class_name: str | None, message: str) -> HayloftError | None:
    """The inverse, for a client: an error of that class with that text, or None for an unknown class."""
    cls = _CLASSES.get(class_name or "")
    if cls is None:
        return None
    error = cls.__new__(cls)  # some constructors compose their text from parts that a status does not carry
    Exception.__init__(error, message)
    return error


_CLASSES = {cls.__name__: cls for cls in leaves()}
