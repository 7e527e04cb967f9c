"""Stores around stores: one that tries again, one that bounds what is under way."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import StoreUnavailable, TransientStoreError
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import KeepsChecksums, StoredChecksum
from csi_driver.objects.store import InFlightObject, ObjectStore, Whole, read_whole, whole_reader

T = TypeVar("T")


@runtime_checkable
class ListsInOrder(Protocol):
    """A store whose listing is sorted by key, so that one that broke off can go on where it was."""

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        """Like ``list``, but only keys that sort behind ``after``."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with full jitter: the n-th pause is a random part of first_s * 2^n, at most longest_s.

    Full jitter spreads clients that failed together best. 0.1 s: a store that sheds load answers again in tens of
    milliseconds; 10 s: one that is gone for a minute is found again soon after it is back.
    """

    first_s: float = 0.1
    longest_s: float = 10.0

    def pause_s(self, failures: int, fraction: float) -> float:
        """Pause after so many failures in a row (1 or more); ``fraction`` is random in [0, 1)."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30)) * fraction


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often; clock, sleep and random are there for tests."""

    deadline_s: float
    backoff: Backoff = Backoff()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def call(self, action: Callable[[], T]) -> T:
        """The result of ``action``, called again while it raises TransientStoreError and the deadline lasts."""
        operation = _Operation(self)
        while True:
            try:
                return action()
            except TransientStoreError as error:
                operation.pause_or_raise(error)


class _Operation:
    """The deadline and the failures of one operation. It counts time without progress: from the start, or from the
    last byte or page that arrived."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.progress()

    def progress(self) -> None:
        """Something arrived: the deadline and the backoff start anew."""
        self._failures = 0
        self._give_up_at = self._policy.clock() + self._policy.deadline_s

    def pause_or_raise(self, error: TransientStoreError) -> None:
        """Sleeps until the next try, or raises if that would be after the deadline."""
        self._failures += 1
        pause = self._policy.backoff.pause_s(self._failures, self._policy.random())
        if error.retry_after_s is not None:
            pause = max(pause, error.retry_after_s)
        if self._policy.clock() + pause >= self._give_up_at:
            kind = error.given_up or StoreUnavailable
            tries = f"{self._failures} tries within {self._policy.deadline_s:g} s" if self._failures > 1 else "one try"
            raise kind(f"given up after {tries}: {error}") from error
        self._policy.sleep(pause)


class Retrying:
    """Tries again what fails in passing: TransientStoreError, and nothing else.

    A listing goes on behind the last key, a read behind the last byte and under the same If-Match, so that a caller
    sees neither twice. When ``deadline_s`` has passed without progress the last failure becomes StoreUnavailable
    (or EndpointUnreachable). A try that is under way is not cut short: the store's own time-out bounds it.
    """

    def __init__(self, store: ObjectStore, deadline_s: float, policy: RetryPolicy | None = None) -> None:
        """``policy`` takes the place of ``deadline_s``."""
        self._store = store
        self._whole = whole_reader(store)
        self._policy = policy or RetryPolicy(deadline_s)

    @property
    def endpoint(self) -> str:
        return self._store.endpoint

    @property
    def bucket(self) -> str:
        return self._store.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        operation, last_key = _Operation(self._policy), ""
        while True:
            try:
                for page in self._listing(prefix, last_key):
                    if page.keys:
                        last_key = page.keys[-1]
                    yield page
                    operation.progress()
                return
            except TransientStoreError as error:
                if last_key and not isinstance(self._store, ListsInOrder):
                    raise StoreUnavailable(f"the listing broke off and cannot be resumed: {error}") from error
                operation.pause_or_raise(error)

    def _listing(self, prefix: str, last_key: str) -> Iterator[ObjectPage]:
        if last_key and isinstance(self._store, ListsInOrder):
            return self._store.list_after(prefix, last_key)
        return self._store.list(prefix)

    def stat(self, key: str) -> ObjectInfo:
        return self._policy.call(lambda: self._store.stat(key))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        return self._read_on(_Operation(self._policy), key, byte_range, if_match)

    @property
    def reads_whole(self) -> bool:
        """See ReadsWhole."""
        return self._whole is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> Whole:
        """See ReadsWhole. What broke off goes on as a range."""
        operation = _Operation(self._policy)
        try:
            return read_whole(self._store, key, size_bytes, if_match=if_match)
        except TransientStoreError as error:
            operation.pause_or_raise(error)
        return Whole(list(self._read_on(operation, key, ByteRange(0, size_bytes), if_match)))

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """See ReadsWhole. Who gives it up has it tried again by ``read_whole``."""
        return None if self._whole is None else self._whole.begin_whole(key, size_bytes, if_match=if_match)

    def _read_on(
        self, operation: _Operation, key: str, byte_range: ByteRange, if_match: str | None
    ) -> Iterator[memoryview]:
        start = byte_range.start
        while True:
            rest = ByteRange(start, byte_range.stop)
            try:
                for piece in self._store.read_range(key, rest, if_match=if_match):
                    start += len(piece)
                    yield piece
                    operation.progress()
                return
            except TransientStoreError as error:
                operation.pause_or_raise(error)

    def close(self) -> None:
        self._store.close()


class Checked(Retrying):
    """A store with retries that can be asked for checksums too; see KeepsChecksums. What it holds is read as through
    any other: who reads decides when to ask."""

    def __init__(self, store: ObjectStore, keeper: KeepsChecksums, deadline_s: float, md5_up_to_bytes: int) -> None:
        super().__init__(store, deadline_s)
        self._keeper = keeper
        self.md5_up_to_bytes = md5_up_to_bytes

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        """See KeepsChecksums."""
        return self._policy.call(lambda: self._keeper.checksum(key, if_match=if_match))


class _Slots:
    """A semaphore of C: threading's is Python, and costs a small object's read 10 microseconds."""

    def __init__(self, count: int) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)


class Limited:
    """At most ``in_flight`` requests at a time; one more waits. A read counts until its last byte, or until its
    iterator is closed; a listing counts while a page is fetched."""

    def __init__(self, store: ObjectStore, in_flight: int) -> None:
        self._store = store
        self._whole = whole_reader(store)
        self._slots = _Slots(in_flight)

    @property
    def endpoint(self) -> str:
        return self._store.endpoint

    @property
    def bucket(self) -> str:
        return self._store.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        return self._paged(self._store.list(prefix))

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        """See ListsInOrder; raises StoreUnavailable where the store inside cannot do it."""
        if isinstance(self._store, ListsInOrder):
            return self._paged(self._store.list_after(prefix, after))
        raise StoreUnavailable("the listing broke off and cannot be resumed")

    def _paged(self, pages: Iterator[ObjectPage]) -> Iterator[ObjectPage]:
        while True:
            with self._slots:
                page = next(pages, None)
            if page is None:
                return
            yield page

    def stat(self, key: str) -> ObjectInfo:
        with self._slots:
            return self._store.stat(key)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        with self._slots:
            yield from self._store.read_range(key, byte_range, if_match=if_match)

    @property
    def reads_whole(self) -> bool:
        """See ReadsWhole."""
        return self._whole is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> Whole:
        """See ReadsWhole."""
        with self._slots:
            return read_whole(self._store, key, size_bytes, if_match=if_match)

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """See ReadsWhole. Does not count: it is bounded by the connections that are idle."""
        return None if self._whole is None else self._whole.begin_whole(key, size_bytes, if_match=if_match)

    def close(self) -> None:
        self._store.close()
