"""The protocol of an object store: list, stat, read a range, and optionally GET complete small objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

from csi_driver.model.chunk import ByteRange
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import Checksum


class ObjectStore(Protocol):
    """One bucket (or root directory) under one identity. All methods block and may be called from any thread."""

    @property
    def endpoint(self) -> str:
        """Distinguishes stores with the same bucket name; part of the identity of cached bytes."""

    @property
    def bucket(self) -> str:
        """Bucket, container or root."""

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        """Pages of all objects with a key that begins with ``prefix``, in any order.

        Raises BucketNotFound, AccessDenied, CredentialsRejected, EndpointUnreachable, StoreUnavailable,
        StoreProtocolError. No page if there is no such object.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectNotFound and what ``list`` raises."""

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        """The bytes of the range, in order, in pieces of any size; together exactly ``len(byte_range)``.

        A piece is a read-only, contiguous, one-dimensional view of bytes and stays valid as long as it is
        referenced. With ``if_match`` the bytes are of that ETag or ObjectChanged is raised. A weak one is not
        sent, and compared weakly with that of the answer. A store that sends
        another range or too much raises StoreProtocolError before a wrong byte is yielded; one that sends too little
        raises TransientStoreError. Closing the iterator early aborts the request.
        """

    def close(self) -> None:
        """Closes idle connections. Not needed for correctness."""


class WholeObject(NamedTuple):
    """All bytes of an object, and its checksum if the store sent one in the same response."""

    parts: Sequence[memoryview]
    checksum: Checksum | None = None


class InFlightObject(Protocol):
    """A complete object that was requested and not yet received. Used by one thread at a time."""

    @property
    def timeout_s(self) -> float:
        """How long to wait for the next byte."""

    @property
    def events(self) -> int:
        """What poll(2) has to wait for before ``advance`` is called again; may change with each call."""

    @property
    def progress(self) -> int:
        """Grows with each byte of the object that is received. A head that is not complete is no progress, nor is a
        record of TLS without data."""

    def fileno(self) -> int:
        """The descriptor to poll; stays the same."""

    def advance(self) -> WholeObject | None:
        """Receives what is available, without blocking. None: the object is not complete yet. After UnusableResponse or
        an OSError the caller calls ``abort`` and takes the fallback path."""

    def abort(self) -> None:
        """Aborts the request and releases its connection."""


class UnusableResponse(Exception):
    """The response is not the complete object. The fallback path repeats the request and maps its errors."""


class StoreAtLimit(Exception):
    """As many requests are in flight at the store as there may be: this one has to wait for its turn."""

    def __init__(
        self,
        take: Callable[[Callable[[], None]], bool],
        give_back: Callable[[], None],
        begin: Callable[[], InFlightObject | None],
    ) -> None:
        """``take``: as ``RequestLimit.take``. ``begin``: as ``ReadsWhole.begin_whole``, in the slot that was taken; it
        gives it back if it returns None or raises. Without it the caller calls ``give_back``."""
        super().__init__("the limit of requests in flight is reached")
        self.take, self.give_back, self.begin = take, give_back, begin


class ReadsWhole(Protocol):
    """A store with a faster path for complete small objects."""

    @property
    def reads_whole(self) -> bool:
        """False for a wrapper around a store without this path."""

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        """Blocks. Raises what ``ObjectStore.read_range`` raises, which reads the same bytes."""

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Sends the request without blocking. None: not possible now; take the fallback path. Raises
        CredentialsRejected, and StoreAtLimit where requests are bounded."""


def whole_reader(store: ObjectStore) -> ReadsWhole | None:
    """The store if it has a faster path for complete objects. Called for every small object: an isinstance of the
    protocol would take longer than everything else here."""
    return cast(ReadsWhole, store) if getattr(store, "reads_whole", False) else None


def read_whole(store: ObjectStore, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
    """A complete object by the store's faster path, or as a range."""
    reader = whole_reader(store)
    if reader is not None:
        return reader.read_whole(key, size_bytes, if_match=if_match)
    return WholeObject(list(store.read_range(key, ByteRange(0, size_bytes), if_match=if_match)))
