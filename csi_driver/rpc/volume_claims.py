"""Allows one call for a volume at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi_driver.model.errors import OperationPending


class VolumeClaims:
    """The ids of the volumes that have a call in flight. The state of a volume is in the mount table, not here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _pending; not held during a call
        self._pending: set[str] = set()

    @contextmanager
    def claim(self, volume_id: str) -> Iterator[None]:
        """Does not wait: raises OperationPending at once while another call for the volume is in flight."""
        with self._lock:
            if volume_id in self._pending:
                raise OperationPending(f"{volume_id}: another call for this volume is in flight; retry later")
            self._pending.add(volume_id)
        try:
            yield
        finally:
            with self._lock:
                self._pending.discard(volume_id)
