"""A store wrapper that bounds the requests in flight."""

from __future__ import annotations

import queue
from collections.abc import Iterator

from csi_driver.model.chunk import ByteRange
from csi_driver.model.errors import InternalFailure
from csi_driver.model.snapshot import ObjectInfo, ObjectPage
from csi_driver.objects.listing_pages import ListedPage, page_lister
from csi_driver.objects.store import InFlightObject, ObjectStore, WholeObject, read_whole, whole_reader


class _Slots:
    """A semaphore in C: that of ``threading`` is Python, and costs a read of a small object 10 microseconds."""

    def __init__(self, count: int) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)


class Limited:
    """At most ``in_flight`` requests at a time; further ones block. A read counts until its last byte, or until its
    iterator is closed; a listing counts while a page is fetched."""

    def __init__(self, store: ObjectStore, in_flight: int) -> None:
        self._store = store
        self._whole = whole_reader(store)
        self._pages = page_lister(store)
        self._slots = _Slots(in_flight)

    @property
    def endpoint(self) -> str:
        return self._store.endpoint

    @property
    def bucket(self) -> str:
        return self._store.bucket

    def list(self, prefix: str) -> Iterator[ObjectPage]:
        pages = self._store.list(prefix)
        while True:
            with self._slots:
                page = next(pages, None)
            if page is None:
                return
            yield page

    @property
    def lists_pages(self) -> bool:
        return self._pages is not None

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        """Only if ``lists_pages``."""
        if self._pages is None:
            raise InternalFailure("this kind of store lists no single pages")
        with self._slots:
            return self._pages.list_page(prefix, token)

    def stat(self, key: str) -> ObjectInfo:
        with self._slots:
            return self._store.stat(key)

    def read_range(self, key: str, byte_range: ByteRange, *, if_match: str | None) -> Iterator[memoryview]:
        with self._slots:
            yield from self._store.read_range(key, byte_range, if_match=if_match)

    @property
    def reads_whole(self) -> bool:
        return self._whole is not None

    def read_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> WholeObject:
        with self._slots:
            return read_whole(self._store, key, size_bytes, if_match=if_match)

    def begin_whole(self, key: str, size_bytes: int, *, if_match: str | None) -> InFlightObject | None:
        """Does not count: the caller bounds these requests, and must not block here."""
        return None if self._whole is None else self._whole.begin_whole(key, size_bytes, if_match=if_match)

    def close(self) -> None:
        self._store.close()
