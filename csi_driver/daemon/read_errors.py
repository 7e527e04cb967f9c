"""What went wrong for the readers of a volume and stays wrong: the volume's condition tells it."""

from __future__ import annotations

import threading

from csi_driver.model.errors import ChecksumMismatch, HayloftError, ObjectChanged, ObjectNotFound

MOST_KEYS = 10_000
"""So many objects are told apart; beyond it "at least" is said."""


class ReadErrors:
    """Objects of one volume that readers could not have. ``_lock`` guards the two sets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed: dict[str, None] = {}
        self._damaged: dict[str, None] = {}

    def note(self, key: str, error: HayloftError) -> None:
        """A read or an open of this object was answered with this error. What another try may mend is not kept."""
        if isinstance(error, ObjectChanged | ObjectNotFound):
            kept = self._changed
        elif isinstance(error, ChecksumMismatch):
            kept = self._damaged
        else:
            return
        with self._lock:
            if len(kept) < MOST_KEYS:
                kept[key] = None

    def messages(self) -> list[str]:
        """One sentence for each kind; empty while all is well."""
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
                    f"{next(iter(self._damaged))!r}; look at the store"
                )
        return found


def _counted(keys: dict[str, None]) -> str:
    count = len(keys)
    least = "at least " if count >= MOST_KEYS else ""
    return f"{least}{count} object{'s were' if count != 1 else ' was'}"
