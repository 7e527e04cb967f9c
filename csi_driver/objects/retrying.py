"""A store wrapper that retries requests: backoff, deadline, and resuming what broke off."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import StoreUnavailable, TransientStoreError
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import ChecksumProvider, StoredChecksum
from csi_driver.objects.store import InFlightObject, ObjectStore, WholeObject, read_whole, whole_reader

T = TypeVar("T")


@runtime_checkable
class ListsInOrder(Protocol):
    """A store that lists keys in order, so that a listing can be resumed after an error."""

    def list_after(self, prefix: str, after: str) -> Iterator[ObjectPage]:
        """Like ``list``, but only keys that sort after ``after``."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with full jitter: the n-th pause is a random part of first_s * 2^n, at most longest_s.

    Full jitter spreads clients that failed together best. 0.1 s: a store that sheds load answers again within tens of
    milliseconds; 10 s: after an outage of a minute, requests resume soon after the store is back.
    """

    first_s: float = 0.1
    longest_s: float = 10.0

    def pause_s(self, failures: int, fraction: float) -> float:
        """Pause after so many consecutive failures (1 or more); ``fraction`` is random in [0, 1)."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30)) * fraction


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Deadline and backoff of an operation; tests replace clock, sleep and random."""

    deadline_s: float
    backoff: Backoff = Backoff()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def call(self, action: Callable[[], T]) -> T:
        """The result of ``action``, which is retried on TransientStoreError until the deadline."""
        operation = _Operation(self)
        while True:
            try:
                return action()
            except TransientStoreError as error:
                operation.pause_or_raise(error)


class _Operation:
    """The deadline and the failures of one operation. The deadline counts time without progress: from the start, or
    from the last byte or page received."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.progress()

    def progress(self) -> None:
        """Something was received: deadline and backoff start anew."""
        self._failures = 0
        self._deadline_at = self._policy.clock() + self._policy.deadline_s

    def pause_or_raise(self, error: TransientStoreError) -> None:
        """Sleeps until the next try; raises if that would be after the deadline."""
        self._failures += 1
        pause = self._policy.backoff.pause_s(self._failures, self._policy.random())
        if error.retry_after_s is not None:
            pause = max(pause, error.retry_after_s)
        if self._policy.clock() + pause >= self._deadline_at:
            kind = error.when_exhausted or StoreUnavailable
            # Without the number of tries, which differs each time: Kubernetes merges events of the same text only.
            raise kind(f"retries exhausted within {self._policy.deadline_s:g} s: {error}") from error
        self._policy.sleep(pause)


class Retrying:
    """Retries on TransientStoreError, and on nothing else.

    A listing resumes after the last key, a read after the last byte and with the same If-Match, so that a caller gets
    neither twice. After ``deadline_s`` without progress the last failure becomes StoreUnavailable (or
    EndpointUnreachable). A request in flight is not aborted at the deadline: the store's own timeout bounds it.
    """

    def __init__(self, store: ObjectStore, deadline_s: float, policy: RetryPolicy | None = None) -> None:
        """``policy`` replaces ``deadline_s``."""
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
        store, operation, last_key = self._store, _Operation(self._policy), ""
        while True:
            try:
                if last_key and isinstance(store, ListsInOrder):
                    pages = store.list_after(prefix, last_key)
                else:
                    pages = store.list(prefix)
                for page in pages:
                    if page.keys:
                        last_key = page.keys[-1]
                    yield page
                    operation.progress()
                return
            except TransientStoreError as error:
                if last_key and not isinstance(store, ListsInOrder):
                    raise StoreUnavailable(f"the listing broke off and cannot be resumed: {error}") from error
                operation.pause_or_raise(error)

    def stat(self, key: str) -> ObjectInfo:
        return self._policy.call(lambda: self._store.stat(key))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        return self._read_resuming(_Operation(self._policy), key, byte_range, if_match)

    @property
    def reads_whole(self) -> bool:
        return self._whole is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        """A request that breaks off is resumed as a range."""
        operation = _Operation(self._policy)
        try:
            return read_whole(self._store, key, size_bytes, if_match=if_match)
        except TransientStoreError as error:
            operation.pause_or_raise(error)
        return WholeObject(list(self._read_resuming(operation, key, ByteRange(0, size_bytes), if_match)))

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Not retried: after an error the caller calls ``read_whole``, which is."""
        return None if self._whole is None else self._whole.begin_whole(key, size_bytes, if_match=if_match)

    def _read_resuming(
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


class RetryingWithChecksums(Retrying):
    """A ``ChecksumProvider`` that retries these requests too. It verifies nothing itself."""

    def __init__(self, store: ObjectStore, provider: ChecksumProvider, deadline_s: float, md5_up_to_bytes: int) -> None:
        super().__init__(store, deadline_s)
        self._provider = provider
        self.md5_up_to_bytes = md5_up_to_bytes

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        return self._policy.call(lambda: self._provider.checksum(key, if_match=if_match))
