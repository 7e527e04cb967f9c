"""The read errors of a volume: for the condition that Kubernetes shows, the log, and the metrics."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from csi_driver import telemetry
from csi_driver.fuse.errnos import errno_of
from csi_driver.model.errors import (
    AddressNotAllowed,
    BucketNotFound,
    ChecksumMismatch,
    CredentialsRejected,
    DescriptorsExhausted,
    EndpointUnreachable,
    HayloftError,
    Interrupted,
    ObjectArchived,
    ObjectChanged,
    ObjectNotFound,
    RequestError,
    StoreUnavailable,
    TransientStoreError,
)
from csi_driver.reading.access import Access

logger = logging.getLogger(__name__)

MOST_KEYS = 10_000
"""Limit of the objects that are counted, to bound memory; at the limit the message says "at least"."""

LOG_INTERVAL_S = 60.0
"""Of the lines about one kind of error of one volume."""

LASTS_S = 600.0
"""An error that was not seen again for so long is no longer part of the condition: perhaps none has tried."""

_OF_ALL_OBJECTS = (
    *(AddressNotAllowed, BucketNotFound, CredentialsRejected, EndpointUnreachable, RequestError),
    *(StoreUnavailable, TransientStoreError),
)
"""An answer of the store for another object shows that they are over. Others are about one object."""


class ReadErrorCounts:
    """Opens and reads that failed, of all mounts of a daemon, by the name of their errno. May be used from any thread;
    ``_lock`` guards ``_counts``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def by_errno(self) -> Mapping[str, int]:
        """Since the daemon started."""
        with self._lock:
            return dict(self._counts)


@dataclass(slots=True)
class _Kind:
    """The errors of one class that a volume has."""

    text: str
    """Of the first one, so that the condition does not change with each: Kubernetes merges events of the same text."""
    rows: set[int] = field(default_factory=set)
    """Of the objects, in the manifest."""
    first_key: str = ""
    seen_s: float = 0.0
    fetches: int = 0
    """``Access.fetches`` at the last error."""


class ReadErrors:
    """The objects of one volume that cannot be read. May be used from any thread.

    ``_lock`` guards the other fields. The log is written without it."""

    def __init__(
        self,
        volume_id: str,
        access: Callable[[], Access],
        counts: ReadErrorCounts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``access`` returns the one of now, which knows what the volume has fetched since."""
        self._volume_id, self._access, self._counts, self._clock = volume_id, access, counts, clock
        self._lock = threading.Lock()
        self._changed: dict[str, None] = {}
        self._damaged: dict[str, None] = {}
        self._archived: dict[str, None] = {}
        self._lasting: dict[type[HayloftError], _Kind] = {}
        self._next_line_s: dict[type[HayloftError], float] = {}
        self._unlogged: Counter[type[HayloftError]] = Counter()

    def note(self, row: int, key: str, error: HayloftError) -> None:
        """A read or an open of the object failed: counts it, logs it unless that was done a moment ago, and records it
        for the condition."""
        if isinstance(error, Interrupted):  # the reader was killed
            return
        number = errno_of(error)
        name = errno.errorcode.get(number, str(number))
        self._counts.add(name)
        with self._lock:
            self._record(row, key, error)
            unlogged = self._to_be_logged(type(error))
        if unlogged is not None:
            facts = telemetry.fields(
                volume_id=self._volume_id, errno=name, key=key, error=str(error), not_logged=unlogged or None
            )
            logger.warning("a read of a volume failed", extra=facts)

    def messages(self) -> list[str]:
        """One sentence for each kind of error that lasts; empty without errors."""
        found = []
        with self._lock:
            if self._changed:
                found.append(
                    f"{_counted(len(self._changed))} changed or deleted in the store since the snapshot, such as "
                    f"{next(iter(self._changed))!r}; make a volume of a new snapshot"
                )
            if self._damaged:
                found.append(
                    f"{_counted(len(self._damaged))} sent by the store with bytes that do not match their checksum, "
                    f"such as {next(iter(self._damaged))!r}; check the store"
                )
            if self._archived:
                found.append(
                    f"{_counted(len(self._archived))} archived in the store, such as {next(iter(self._archived))!r}; "
                    "restore them there, or make a volume without them"
                )
            self._lasting = {cls: kind for cls, kind in self._lasting.items() if self._lasts(cls, kind)}
            found += [_sentence(cls, kind) for cls, kind in self._lasting.items()]
        return found

    def _record(self, row: int, key: str, error: HayloftError) -> None:
        keys = self._keys_of(error)
        if keys is not None:
            if len(keys) < MOST_KEYS:
                keys[key] = None
            return
        if isinstance(error, DescriptorsExhausted):  # ``DatasetFilesystem.descriptors_exhausted`` has the condition
            return
        kind = self._lasting.get(type(error))
        if kind is None or not self._lasts(type(error), kind):
            kind = self._lasting[type(error)] = _Kind(str(error), first_key=key)
        access = self._access()
        kind.seen_s, kind.fetches = self._clock(), access.fetches
        if len(kind.rows) < MOST_KEYS:
            kind.rows.add(row)
            access.failing.add(row)

    def _keys_of(self, error: HayloftError) -> dict[str, None] | None:
        """Where the objects are listed whose bytes this snapshot will not have; None for other errors."""
        if isinstance(error, ObjectChanged | ObjectNotFound):
            return self._changed
        if isinstance(error, ChecksumMismatch):
            return self._damaged
        return self._archived if isinstance(error, ObjectArchived) else None

    def _lasts(self, cls: type[HayloftError], kind: _Kind) -> bool:
        """Whether nothing has shown since that it is over."""
        if self._clock() - kind.seen_s > LASTS_S:
            return False
        if issubclass(cls, _OF_ALL_OBJECTS):
            return self._access().fetches == kind.fetches
        kind.rows &= self._access().failing
        return bool(kind.rows)

    def _to_be_logged(self, cls: type[HayloftError]) -> int | None:
        """How many errors of the class were not logged before this one; None if this one is not either."""
        now = self._clock()
        if now < self._next_line_s.get(cls, now):
            self._unlogged[cls] += 1
            return None
        self._next_line_s[cls] = now + LOG_INTERVAL_S
        return self._unlogged.pop(cls, 0)


def _sentence(cls: type[HayloftError], kind: _Kind) -> str:
    if issubclass(cls, _OF_ALL_OBJECTS):
        return f"what is not cached cannot be read: {kind.text}"
    return f"{_counted(len(kind.rows))} not readable, such as {kind.first_key!r}: {kind.text}"


def _counted(count: int) -> str:
    least = "at least " if count >= MOST_KEYS else ""
    return f"{least}{count} object{'s were' if count != 1 else ' was'}"
