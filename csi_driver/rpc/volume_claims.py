"""Allows one call for a volume at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from csi_driver.model.errors import OperationPending
from csi_driver.rpc import progress


class VolumeClaims:
    """The ids of the volumes that have a call in flight. The state of a volume is in the mount table, not here."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _pending; not held during a call
        self._pending: dict[str, _Listed] = {}

    @contextmanager
    def claim(self, volume_id: str) -> Iterator[None]:
        """Does not wait: raises OperationPending at once while another call for the volume is in flight, which says how
        far that is if it lists a dataset."""
        with self._lock:
            other = self._pending.get(volume_id)
            if other is not None:
                raise OperationPending(f"{volume_id}: another call for this volume is in flight{other}; retry later")
            listed = self._pending[volume_id] = _Listed()
        try:
            with progress.observed_by(listed):
                yield
        finally:
            with self._lock:
                self._pending.pop(volume_id, None)


class _Listed:
    """The progress of one call."""

    def __init__(self) -> None:
        self._count = 0
        """Written by the thread of the call, and read by others, without a lock: one number."""

    def listed(self, count: int) -> None:
        self._count = count

    def finished(self, file_count: int, total_bytes: int, remarks: Sequence[tuple[str, str]]) -> None:
        self._count = 0

    def __str__(self) -> str:
        least = progress.rounded_count(self._count)
        return f", which lists its dataset: more than {least} objects so far" if least else ""
