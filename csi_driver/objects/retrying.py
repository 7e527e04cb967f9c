"""A store wrapper that retries requests: backoff, deadline, and resuming what broke off."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import InternalFailure, StoreUnavailable, TransientStoreError
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import ChecksumProvider, StoredChecksum
from csi_driver.objects.listing_pages import ListedPage, ListingLog, ListsByPage, all_pages, page_lister
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.parallel_listing import pages_in_ranges
from csi_driver.objects.store import InFlightObject, ObjectStore, WholeObject, read_whole, whole_reader
from csi_driver.objects.version_listing import ListedVersions, version_lister

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
    retried: Callable[[], None] = lambda: None
    """Called before each further try."""

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
    from the last byte or the last page with objects. An answer without bytes or keys is no progress."""

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
        self.raise_if_late(error, pause)
        logger.debug("retrying: %s", error)
        self._policy.sleep(pause)
        self._policy.retried()

    def raise_if_late(self, error: TransientStoreError, pause_s: float = 0.0) -> None:
        """Raises if the deadline is over within the pause."""
        if self._policy.clock() + pause_s >= self._deadline_at:
            kind = error.when_exhausted or StoreUnavailable
            # Without the number of tries, which differs each time: Kubernetes merges events of the same text only.
            raise kind(f"retries exhausted within {self._policy.deadline_s:g} s: {error}") from error


class Retrying:
    """Retries on TransientStoreError, and on nothing else.

    A listing resumes with the page that failed, by its continuation token, a read after the last byte and with the same
    If-Match, so that a caller gets neither twice. After ``deadline_s`` without progress the last failure becomes
    StoreUnavailable (or EndpointUnreachable). A request in flight is not aborted at the deadline: the store's own
    timeout bounds it.
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
        pages = page_lister(self._store)
        return self._list_at_once(prefix) if pages is None else self._list_by_page(pages, prefix)

    def _list_by_page(self, store: ListsByPage, prefix: str, log: ListingLog | None = None) -> Iterator[ObjectPage]:
        name = self._bucket_name()
        return all_pages(self._page_fetch(store, prefix, name), name, log)

    @property
    def lists_pages(self) -> bool:
        """See ``listing_pages.py``."""
        return page_lister(self._store) is not None

    def list_logged(self, prefix: str, log: ListingLog, *, in_ranges: bool) -> Iterator[ObjectPage]:
        """Only if ``lists_pages``."""
        store, name = self._required_pages(), self._bucket_name()
        if in_ranges:
            return pages_in_ranges(lambda: self._page_fetch(store, prefix, name), prefix, name, log=log)
        return self._list_by_page(store, prefix, log)

    @property
    def lists_ranges(self) -> bool:
        """See ``parallel_listing.py``."""
        return bool(getattr(self._store, "lists_ranges", False))

    def list_in_ranges(self, prefix: str) -> Iterator[ObjectPage]:
        """Only if ``lists_ranges``."""
        store, name = self._required_pages(), self._bucket_name()
        return pages_in_ranges(lambda: self._page_fetch(store, prefix, name), prefix, name)

    def _required_pages(self) -> ListsByPage:
        store = page_lister(self._store)
        if store is None:
            raise InternalFailure("this kind of store lists no single pages")
        return store

    def _bucket_name(self) -> str:
        return f"bucket {self.bucket!r} at {self.endpoint}"

    def _page_fetch(self, store: ListsByPage, prefix: str, name: str) -> Callable[[str | None], ListedPage]:
        """What requests the pages of one listing, or of one range of it, one after the other."""
        operation, has_advanced = _Operation(self._policy), False

        def fetch(token: str | None) -> ListedPage:
            nonlocal has_advanced
            if has_advanced:
                operation.progress()  # here, so that the time that the caller takes for a page does not count
            while True:
                try:
                    listed = store.list_page(prefix, token)
                except TransientStoreError as error:
                    operation.pause_or_raise(error)
                    continue
                has_advanced = len(listed.page) > 0
                if not has_advanced and listed.next_token is not None:
                    operation.raise_if_late(TransientStoreError(f"{name}: the store lists pages without an object"))
                return listed

        return fetch

    def _list_at_once(self, prefix: str) -> Iterator[ObjectPage]:
        """Of a store whose listing cannot be resumed: it is started again as long as the caller has got no page."""
        operation = _Operation(self._policy)
        while True:
            has_begun = False
            try:
                for page in self._store.list(prefix):
                    has_begun = True
                    yield page
                return
            except TransientStoreError as error:
                if has_begun:
                    raise StoreUnavailable(f"the listing broke off and cannot be resumed: {error}") from error
                operation.pause_or_raise(error)

    @property
    def lists_versions(self) -> bool:
        """See ``version_listing.py``."""
        return version_lister(self._store) is not None

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        """Only if ``lists_versions``."""
        store = version_lister(self._store)
        if store is None:
            raise InternalFailure("this kind of store lists no versions")
        return self._policy.call(lambda: store.list_versions_page(prefix, token))

    def stat(self, key: str) -> ObjectInfo:
        return self._policy.call(lambda: self._store.stat(key))

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        operation, start = _Operation(self._policy), byte_range.start
        while True:
            rest = ByteRange(start, byte_range.stop)
            try:
                for piece in self._store.read_range(key, rest, if_match=if_match):
                    if not len(piece):
                        continue
                    start += len(piece)
                    yield piece
                    operation.progress()
                return
            except TransientStoreError as error:
                operation.pause_or_raise(error)

    @property
    def unretried(self) -> ObjectStore:
        """See ``without_retries``."""
        return self._store

    @property
    def reads_whole(self) -> bool:
        return self._whole is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        """A request that breaks off is sent again for the complete object, which is small: not every store answers
        ranges."""
        return self._policy.call(lambda: read_whole(self._store, key, size_bytes, if_match=if_match))

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Not retried: after an error the caller calls ``read_whole``, which is."""
        return None if self._whole is None else self._whole.begin_whole(key, size_bytes, if_match=if_match)

    @property
    def signs_requests(self) -> bool:
        return request_signer(self._store) is not None

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """As ``SignsRequests``. It sends nothing itself: neither counted nor retried."""
        signer = request_signer(self._store)
        return None if signer is None else signer.origin_request(key, if_match, whole=whole, may_block=may_block)

    def distrust(self, key: str, if_match: str | None) -> None:
        """Damaged bytes of this version were received: a store with mirrors asks another one first from now on."""
        distrust = getattr(self._store, "distrust", None)
        if distrust is not None:
            distrust(key, if_match)

    def close(self) -> None:
        self._store.close()


def without_retries(store: ObjectStore) -> ObjectStore:
    """The store for a request that may fail without harm: it fails at the first try, with TransientStoreError."""
    return cast(ObjectStore, getattr(store, "unretried", store))


class RetryingWithChecksums(Retrying):
    """A ``ChecksumProvider`` that retries these requests too. It verifies nothing itself."""

    def __init__(
        self,
        store: ObjectStore,
        provider: ChecksumProvider,
        deadline_s: float,
        md5_up_to_bytes: int | None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """``md5_up_to_bytes``: None for that of the provider, which it may not know before its first use."""
        super().__init__(store, deadline_s, policy)
        self._provider = provider
        self._md5_up_to_bytes = md5_up_to_bytes

    @property
    def md5_up_to_bytes(self) -> int:
        return self._provider.md5_up_to_bytes if self._md5_up_to_bytes is None else self._md5_up_to_bytes

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        return self._policy.call(lambda: self._provider.checksum(key, if_match=if_match))
