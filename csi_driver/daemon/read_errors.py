"""The read errors of a volume: for the conditions that Kubernetes shows, the log, and the metrics."""

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
from csi_driver.model import conditions
from csi_driver.model.conditions import Condition
from csi_driver.model.errors import (
    AccessDenied,
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
from csi_driver.model.log_context import current_call_id
from csi_driver.reading.access import Access

logger = logging.getLogger(__name__)

MOST_KEYS = 10_000
"""Limit of the objects that are remembered, to bound memory."""

LOG_INTERVAL_S = 60.0
"""Of the lines about one kind of error of one volume."""

LASTS_S = 600.0
"""An error that was not seen again for so long is no longer part of the condition: perhaps none has tried."""

_OF_ALL_OBJECTS: dict[type[HayloftError], Condition] = {
    AddressNotAllowed: conditions.ADDRESS_NOT_ALLOWED,
    BucketNotFound: conditions.BUCKET_NOT_FOUND,
    CredentialsRejected: conditions.CREDENTIALS_REJECTED,
    EndpointUnreachable: conditions.STORE_UNREACHABLE,
    RequestError: conditions.SETTINGS_REFUSED,
    StoreUnavailable: conditions.STORE_FAILING,
    TransientStoreError: conditions.STORE_FAILING,
}
"""An answer of the store for another object shows that they are over. Others are about one object."""

_PERMANENT: dict[type[HayloftError], Condition] = {
    ObjectChanged: conditions.OBJECTS_CHANGED,
    ObjectNotFound: conditions.OBJECTS_GONE,
    ChecksumMismatch: conditions.OBJECTS_DAMAGED,
    ObjectArchived: conditions.OBJECTS_ARCHIVED,
}
"""Bytes that this snapshot will not have. They stay in the condition as long as the mount lives."""


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

    fetches_before: int
    """``Access.fetches`` at the first error."""
    rows: set[int] = field(default_factory=set)
    """Of the objects, in the manifest."""
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
        self._call = current_call_id()
        """Of the call that mounts the volume: the lines about its reads have it, too."""
        self._lock = threading.Lock()
        self._permanent: set[Condition] = set()
        self._lasting: dict[type[HayloftError], _Kind] = {}
        self._next_line_s: dict[type[HayloftError], float] = {}
        self._unlogged: Counter[type[HayloftError]] = Counter()

    def note(self, row: int, key: str, error: HayloftError) -> None:
        """A read or an open of the object failed: counts it, logs it unless that was done a moment ago, and records it
        for the conditions of the volume."""
        if isinstance(error, Interrupted):  # the reader was killed
            return
        number = errno_of(error)
        name = errno.errorcode.get(number, str(number))
        self._counts.add(name)
        with self._lock:
            self._record(row, error)
            unlogged = self._to_be_logged(type(error))
        if unlogged is not None:
            facts = telemetry.fields(
                volume_id=self._volume_id,
                errno=name,
                key=key,
                error=str(error),
                not_logged=unlogged or None,
                call=self._call,
            )
            logger.warning("a read of a volume failed", extra=facts)

    def conditions(self) -> list[Condition]:
        """One for each kind of error that lasts; empty without errors."""
        with self._lock:
            self._lasting = {cls: kind for cls, kind in self._lasting.items() if self._lasts(cls, kind)}
            return [*self._permanent, *(self._condition(cls, kind) for cls, kind in self._lasting.items())]

    def _record(self, row: int, error: HayloftError) -> None:
        permanent = _of_class(_PERMANENT, type(error))
        if permanent is not None:
            self._permanent.add(permanent)
            return
        if isinstance(error, DescriptorsExhausted):  # ``DatasetFilesystem.descriptors_exhausted`` has the condition
            return
        access = self._access()
        kind = self._lasting.get(type(error))
        if kind is None or not self._lasts(type(error), kind):
            kind = self._lasting[type(error)] = _Kind(access.fetches)
        kind.seen_s, kind.fetches = self._clock(), access.fetches
        if len(kind.rows) < MOST_KEYS:
            kind.rows.add(row)
            access.failing.add(row)

    def _condition(self, cls: type[HayloftError], kind: _Kind) -> Condition:
        of_all = _of_class(_OF_ALL_OBJECTS, cls)
        if of_all is not None:
            return of_all
        if issubclass(cls, AccessDenied):
            # Once the store has sent any object since, the refusals are about some objects, for as long as they last.
            some = self._access().fetches > kind.fetches_before
            return conditions.OBJECTS_FORBIDDEN if some else conditions.ACCESS_DENIED
        return conditions.READS_FAILING

    def _lasts(self, cls: type[HayloftError], kind: _Kind) -> bool:
        """Whether nothing has shown since that it is over."""
        if self._clock() - kind.seen_s > LASTS_S:
            return False
        if _of_class(_OF_ALL_OBJECTS, cls) is not None:
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


def _of_class(table: Mapping[type[HayloftError], Condition], cls: type[HayloftError]) -> Condition | None:
    return next((table[base] for base in cls.__mro__ if base in table), None)


def conditions_of(cls: type[HayloftError]) -> tuple[Condition, ...]:
    """The conditions that reads with errors of the class can put a volume into."""
    if issubclass(cls, AccessDenied):
        return conditions.ACCESS_DENIED, conditions.OBJECTS_FORBIDDEN
    if issubclass(cls, DescriptorsExhausted):
        return (conditions.TOO_MANY_OPEN_FILES,)
    found = _of_class(_PERMANENT, cls) or _of_class(_OF_ALL_OBJECTS, cls)
    return () if found is None else (found,)
