"""An object store in memory, for tests and benchmarks of everything above the store."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import HayloftError, ObjectChanged, ObjectNotFound
from csi_driver.model.snapshot import ObjectInfo, ObjectPage


@dataclass(frozen=True, slots=True)
class _Stored:
    content: bytes
    etag: str
    mtime_ns: int


class MemoryStore:
    """Objects in a dictionary. Safe for any number of threads; a read sees one version from its first byte on."""

    def __init__(
        self,
        objects: Mapping[str, bytes] | None = None,
        *,
        bucket: str = "memory",
        endpoint: str = "memory://",
        page_keys: int = 1000,
        piece_bytes: int = 1 << 20,
    ) -> None:
        self._bucket, self._endpoint = bucket, endpoint
        self._page_keys, self._piece_bytes = page_keys, piece_bytes
        # Guards the objects, failures and versions, and appends to ``reads``. Not held while a caller reads a body.
        self._lock = threading.Lock()
        self._objects: dict[str, _Stored] = {}
        self._failures: list[HayloftError] = []
        self._versions = 0
        self.reads: list[tuple[str, ByteRange]] = []
        """Every requested range, in the order of the requests."""
        for key, content in (objects or {}).items():
            self.put(key, content)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def bucket(self) -> str:
        return self._bucket

    # -- for tests ----------------------------------------------------------------------------------------------

    def put(self, key: str, content: bytes) -> ObjectInfo:
        """Stores an object. The same content put again is a new version, with another ETag."""
        with self._lock:
            self._versions += 1
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            stored = _Stored(bytes(content), f"{digest}-{self._versions}", time.time_ns())
            self._objects[key] = stored
        return _info(key, stored)

    def delete(self, key: str) -> None:
        """Removes an object; a missing one is no error."""
        with self._lock:
            self._objects.pop(key, None)

    def content(self, key: str) -> bytes:
        """The complete object; not recorded in ``reads``, and never fails by ``fail_next``. Raises KeyError."""
        with self._lock:
            return self._objects[key].content

    def fail_next(self, *errors: HayloftError) -> None:
        """Each of the next operations raises one of these errors before it does anything."""
        with self._lock:
            self._failures.extend(errors)

    # -- ObjectStore --------------------------------------------------------------------------------------------

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        self._raise_next_failure()
        with self._lock:
            rows = sorted((key, stored) for key, stored in self._objects.items() if key.startswith(prefix))
        for start in range(0, len(rows), self._page_keys):
            page = rows[start : start + self._page_keys]
            yield ObjectPage(
                keys=[key for key, _ in page],
                sizes_bytes=[len(stored.content) for _, stored in page],
                etags=[stored.etag for _, stored in page],
                mtimes_ns=[stored.mtime_ns for _, stored in page],
            )

    def stat(self, key: str) -> ObjectInfo:
        self._raise_next_failure()
        return _info(key, self._get(key))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        with self._lock:
            self.reads.append((key, byte_range))
        self._raise_next_failure()
        stored = self._get(key)
        if if_match is not None and if_match != stored.etag:
            raise ObjectChanged(f"object {key!r} is not the version that was listed; make a new snapshot")
        if byte_range.stop > len(stored.content):
            raise ObjectChanged(f"object {key!r} is shorter than when it was listed; make a new snapshot")
        whole = memoryview(stored.content)
        for start in range(byte_range.start, byte_range.stop, self._piece_bytes):
            yield whole[start : min(start + self._piece_bytes, byte_range.stop)]

    def close(self) -> None:
        """A store in memory holds no connection."""

    def _raise_next_failure(self) -> None:
        with self._lock:
            error = self._failures.pop(0) if self._failures else None
        if error is not None:
            raise error

    def _get(self, key: str) -> _Stored:
        with self._lock:
            stored = self._objects.get(key)
        if stored is None:
            raise ObjectNotFound(f"object {key!r} does not exist in bucket {self._bucket!r}")
        return stored


def _info(key: str, stored: _Stored) -> ObjectInfo:
    return ObjectInfo(key, len(stored.content), stored.etag, stored.mtime_ns)
