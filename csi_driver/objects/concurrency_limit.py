"""A store wrapper that bounds the requests in flight, and counts them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import InternalFailure
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.checksums import ChecksumProvider, StoredChecksum
from csi_driver.objects.listing_pages import ListedPage, page_lister
from csi_driver.objects.origin_requests import OriginRequest, request_signer
from csi_driver.objects.request_counts import ABANDONED, OK, Request, RequestCounts, result_of
from csi_driver.objects.store import (
    InFlightObject,
    ObjectStore,
    StoreAtLimit,
    WholeObject,
    read_whole,
    whole_reader,
)
from csi_driver.objects.version_listing import ListedVersions, version_lister
from csi_driver.objects.wrapped_object import WrappedObject


class RequestLimit:
    """Slots for requests. A request that finds none waits in one queue with all others, those of threads and those of
    the event loop: the slot that becomes free is handed to the first one. As a context it blocks.

    ``_lock`` guards ``_waiting``. A request that need not wait takes no lock: ``append`` and ``pop`` of ``_free`` are
    atomic.
    """

    def __init__(self, slots: int) -> None:
        self._lock = threading.Lock()
        self._free: list[None] = [None] * slots
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def free(self) -> int:
        """Slots that are free."""
        return len(self._free)

    def take(self, granted: Callable[[], None] | None = None) -> bool:
        """Takes a slot if one is free. If not, ``granted`` is called as soon as the caller has one, on the thread that
        gives it back: it must not block."""
        if not self._waiting and self._pop():  # behind those that wait already
            return True
        if granted is None:
            return False
        with self._lock:
            # First into the queue, then a look at the slots; ``give_back`` does it the other way round. So one of the
            # two sees the other one, and no slot stays free while a request waits.
            self._waiting.append(granted)
            if len(self._waiting) > 1 or not self._pop():
                return False
            self._waiting.pop()
            return True

    def give_back(self) -> None:
        """A request has ended."""
        self._free.append(None)
        while self._waiting:
            with self._lock:
                if not self._waiting or not self._pop():
                    return
                granted = self._waiting.popleft()
            granted()

    def _pop(self) -> bool:
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def __enter__(self) -> None:
        granted: queue.SimpleQueue[None] = queue.SimpleQueue()
        if not self.take(partial(granted.put, None)):
            granted.get()

    def __exit__(self, *_: object) -> None:
        self.give_back()


class _CountedObject(WrappedObject):
    """An ``InFlightObject`` with a slot, which it gives back at its end."""

    __slots__ = ("_limit", "_request")

    def __init__(self, response: InFlightObject, limit: RequestLimit, request: Request) -> None:
        super().__init__(response)
        self._request = request
        self._limit: RequestLimit | None = limit

    def advance(self) -> WholeObject | None:
        try:
            whole = self._response.advance()
        except BaseException as error:
            self._request.end(result_of(error))
            raise
        if whole is not None:
            self._request.answered()
            self._request.end(OK)
            self._give_back()
        elif self._response.progress:
            self._request.answered()
        return whole

    def abort(self) -> None:
        self._request.end(ABANDONED)
        try:
            self._response.abort()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        limit, self._limit = self._limit, None
        if limit is not None:
            limit.give_back()


class Limited:
    """At most ``in_flight`` requests at a time; further ones block, or are told so (``StoreAtLimit``). A read counts
    until its last byte, or until its iterator is closed; a listing counts while a page is fetched."""

    def __init__(self, store: ObjectStore, in_flight: int, counts: RequestCounts | None = None) -> None:
        """``counts``: of the process, or None where none asks for them."""
        self._store = store
        self._counts = counts or RequestCounts()
        self._whole = whole_reader(store)
        self._pages = page_lister(store)
        self._versions = version_lister(store)
        self.limit = RequestLimit(in_flight)

    @property
    def endpoint(self) -> str:
        return self._store.endpoint

    @property
    def bucket(self) -> str:
        return self._store.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        pages = self._store.list(prefix)
        while True:
            with self.limit, self._counts.request("list"):
                page = next(pages, None)
            if page is None:
                return
            yield page

    @property
    def lists_pages(self) -> bool:
        return self._pages is not None

    @property
    def lists_ranges(self) -> bool:
        """See ``parallel_listing.py``."""
        return bool(getattr(self._store, "lists_ranges", False))

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        """Only if ``lists_pages``."""
        if self._pages is None:
            raise InternalFailure("this kind of store lists no single pages")
        with self.limit, self._counts.request("list"):
            return self._pages.list_page(prefix, token)

    @property
    def lists_versions(self) -> bool:
        return self._versions is not None

    def list_versions_page(self, prefix: str, token: str | None) -> ListedVersions:
        """Only if ``lists_versions``."""
        if self._versions is None:
            raise InternalFailure("this kind of store lists no versions")
        with self.limit, self._counts.request("list"):
            return self._versions.list_versions_page(prefix, token)

    def stat(self, key: str) -> ObjectInfo:
        with self.limit, self._counts.request("stat"):
            return self._store.stat(key)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        with self.limit, self._counts.request("read") as request:
            for piece in self._store.read_range(key, byte_range, if_match=if_match):
                request.answered()
                yield piece

    @property
    def reads_whole(self) -> bool:
        return self._whole is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        with self.limit, self._counts.request("read"):
            return read_whole(self._store, key, size_bytes, if_match=if_match)

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Raises StoreAtLimit, too: it never blocks."""
        whole = self._whole
        if whole is None:
            return None

        def begin() -> InFlightObject | None:
            response, request = None, self._counts.begin("read")
            try:
                response = whole.begin_whole(key, size_bytes, if_match=if_match)
            finally:
                if response is None:
                    self.limit.give_back()
            return None if response is None else _CountedObject(response, self.limit, request)

        if self.limit.take():
            return begin()
        raise StoreAtLimit(self.limit.take, self.limit.give_back, begin)

    @property
    def signs_requests(self) -> bool:
        return request_signer(self._store) is not None

    def origin_request(self, key: str, if_match: str, *, whole: bool, may_block: bool) -> OriginRequest | None:
        """As ``SignsRequests``. It sends nothing itself: neither counted nor retried."""
        signer = request_signer(self._store)
        return None if signer is None else signer.origin_request(key, if_match, whole=whole, may_block=may_block)

    def close(self) -> None:
        self._store.close()


class LimitedWithChecksums(Limited):
    """A ``ChecksumProvider`` whose requests for checksums count too."""

    def __init__(
        self, store: ObjectStore, provider: ChecksumProvider, in_flight: int, counts: RequestCounts | None = None
    ) -> None:
        super().__init__(store, in_flight, counts)
        self._provider = provider
        self.md5_up_to_bytes = provider.md5_up_to_bytes

    def checksum(self, key: str, *, if_match: str | None) -> StoredChecksum:
        with self.limit, self._counts.request("checksum"):
            return self._provider.checksum(key, if_match=if_match)
