"""One call for a volume at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from csi_driver.model.errors import OperationPending


class VolumeClaims:
    """The volumes that a call is working on. What a volume's state is, this does not know: the mount table does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _pending; never held while a call works
        self._pending: set[str] = set()

    @contextmanager
    def claim(self, volume_id: str) -> Iterator[None]:
        """Raises OperationPending at once, rather than wait, when another call for the volume is under way."""
        with self._lock:
            if volume_id in self._pending:
                raise OperationPending(f"{volume_id}: another call for this volume is under way; ask again")
            self._pending.add(volume_id)
        try:
            yield
        finally:
            with self._lock:
                self._pending.discard(volume_id)
