"""The protocol of an object store: list, stat, read a range. Everything above reads remote bytes through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from csi_driver.model.chunk import ByteRange
from csi_driver.model.snapshot import ObjectInfo, ObjectPage


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
