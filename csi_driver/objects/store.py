"""The protocol of an object store: list, stat, read a range. Everything above reads remote bytes through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, cast

from csi_driver.model.chunk import ByteRange
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import Checksum


class ObjectStore(Protocol):
    """One bucket (or root directory) as one identity sees it. All methods block and may be called from any thread."""

    @property
    def endpoint(self) -> str:
        """What tells this store from others with the same bucket name; part of the identity of cached bytes."""

    @property
    def bucket(self) -> str:
        """Bucket, container or root."""

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        """Pages of all objects whose key begins with ``prefix``, in no promised order.

        Raises BucketNotFound, AccessDenied, CredentialsRejected, EndpointUnreachable, StoreUnavailable,
        StoreProtocolError. An empty prefix yields no page.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Raises ObjectNotFound and what ``list`` raises."""

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        """The bytes of the range, in order, in pieces of any size; together exactly ``len(byte_range)``.

        A piece is a read-only, contiguous, one-dimensional view of bytes and stays valid as long as it is
        referenced. With ``if_match`` the bytes are of that ETag or ObjectChanged is raised. A store that sends
        another range or too much raises StoreProtocolError before a wrong byte is yielded; one that sends too little
        raises TransientStoreError. Closing the iterator early ends the request.
        """

    def close(self) -> None:
        """Ends idle connections. Not needed for correctness."""


class Whole(NamedTuple):
    """All bytes of an object, and the checksum that the store said of it in the same answer, if it did."""

    parts: Sequence[memoryview]
    checksum: Checksum | None = None


class InFlightObject(Protocol):
    """A whole object that was asked for and is on its way. Used by one thread at a time."""

    @property
    def timeout_s(self) -> float:
        """How long to wait for the next byte."""

    @property
    def events(self) -> int:
        """What poll(2) is to wait for, until ``advance`` can go on."""

    def fileno(self) -> int:
        """Of the descriptor on which to wait for them. Stays the same."""

    def advance(self) -> Whole | None:
        """Takes what has come, without waiting; None: not all of it. Raises NotPlain and OSError: it is to be given up
        then, and to be asked for in another way."""

    def give_up(self) -> None:
        """Ends the request."""


class NotPlain(Exception):
    """The answer of a store is not the plain one: other ways of asking have the errors for it."""


class ReadsWhole(Protocol):
    """A store that has a way of its own for whole objects that are small."""

    @property
    def reads_whole(self) -> bool:
        """False: it has the methods and no way, like a wrapper around another kind of store."""

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> Whole:
        """Raises what ``ObjectStore.read_range`` raises, which reads the same bytes."""

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Asks for it without waiting. None: that cannot be done now. Raises CredentialsRejected."""


def whole_reader(store: ObjectStore) -> ReadsWhole | None:
    """The store if it has a way of its own for whole objects. Asked for every small object: an isinstance of the
    protocol would take longer than all the rest of it."""
    return cast(ReadsWhole, store) if getattr(store, "reads_whole", False) else None


def read_whole(store: ObjectStore, key: str, size_bytes: int, *, if_match: str | None) -> Whole:
    """A whole object by the store's own way, or as a range."""
    reader = whole_reader(store)
    if reader is not None:
        return reader.read_whole(key, size_bytes, if_match=if_match)
    return Whole(list(store.read_range(key, ByteRange(0, size_bytes), if_match=if_match)))
