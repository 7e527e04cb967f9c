"""The permanent read errors of a volume, for the volume condition that Kubernetes shows."""

from __future__ import annotations

import threading

from csi_driver.model.errors import ChecksumMismatch, HayloftError, ObjectChanged, ObjectNotFound

MOST_KEYS = 10_000
"""Limit of the objects that are counted, to bound memory; at the limit the message says "at least"."""


class ReadErrors:
    """The objects of one volume that cannot be read. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two dictionaries
        self._changed: dict[str, None] = {}
        self._damaged: dict[str, None] = {}

    def note(self, key: str, error: HayloftError) -> None:
        """Records that a read or an open of the object failed. Ignores errors that a retry may resolve."""
        if isinstance(error, ObjectChanged | ObjectNotFound):
            keys = self._changed
        elif isinstance(error, ChecksumMismatch):
            keys = self._damaged
        else:
            return
        with self._lock:
            if len(keys) < MOST_KEYS:
                keys[key] = None

    def messages(self) -> list[str]:
        """One sentence for each kind of error; empty without errors."""
        found = []
        with self._lock:
            if self._changed:
                found.append(
                    f"{_counted(self._changed)} changed or deleted in the store since the snapshot, such as "
                    f"{next(iter(self._changed))!r}; make a volume of a new snapshot"
                )
            if self._damaged:
                found.append(
                    f"{_counted(self._damaged)} sent by the store with bytes that do not match their checksum, such as "
                    f"{next(iter(self._damaged))!r}; check the store"
                )
        return found


def _counted(keys: dict[str, None]) -> str:
    count = len(keys)
    least = "at least " if count >= MOST_KEYS else ""
    return f"{least}{count} object{'s were' if count != 1 else ' was'}"
