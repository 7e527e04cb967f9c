"""The in-memory twin of a blob store, with faults that a test can set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from csi_driver.model.errors import HayloftError
from csi_driver.objects.blobs.blob_store import check_name


class MemoryBlobs:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._blobs: dict[str, tuple[bytes, str]] = {}
        self._writes = 0
        self.before: Callable[[str, str], None] | None = None
        """Called with operation and name before each operation, without the lock: a concurrent change by another
        process."""
        self.failure: HayloftError | None = None
        """Raised by every operation while it is set."""

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._blobs)

    def overwrite(self, name: str, content: bytes) -> None:
        """Sets the content as another program, or an incomplete write, would."""
        with self._lock:
            self._store(name, content)

    def check(self) -> None:
        """Its conditions hold."""

    def get(self, name: str) -> tuple[bytes, str] | None:
        self._begin("get", name)
        with self._lock:
            return self._blobs.get(name)

    def put_if_absent(self, name: str, content: bytes) -> str | None:
        self._begin("put_if_absent", name)
        with self._lock:
            return None if name in self._blobs else self._store(name, content)

    def put_if_match(self, name: str, content: bytes, tag: str) -> str | None:
        self._begin("put_if_match", name)
        with self._lock:
            known = self._blobs.get(name)
            return self._store(name, content) if known is not None and known[1] == tag else None

    def put_file(self, name: str, source: Path) -> None:
        self._begin("put_file", name)
        self.overwrite(name, source.read_bytes())

    def fetch_to_file(self, name: str, target: Path) -> bool:
        blob = self.get(name)
        if blob is not None:
            target.write_bytes(blob[0])
        return blob is not None

    def delete(self, name: str) -> None:
        self._begin("delete", name)
        with self._lock:
            self._blobs.pop(name, None)

    def list(self, prefix: str) -> list[str]:
        self._begin("list", prefix)
        return [name for name in self.names() if name.startswith(prefix)]

    def _begin(self, operation: str, name: str) -> None:
        check_name(name.rstrip("/"))
        if self.before is not None:
            self.before(operation, name)
        if self.failure is not None:
            raise self.failure

    def _store(self, name: str, content: bytes) -> str:
        self._writes += 1
        self._blobs[name] = (content, str(self._writes))
        return str(self._writes)
