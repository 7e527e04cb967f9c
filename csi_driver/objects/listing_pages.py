"""Listings by page: how a page is named, in which order pages are requested, and when a listing does not advance.

A page is requested again by the continuation token that the store gave for it, and never by the last key: stores that
list by directory leave out all keys below ``p/a/`` after the key ``p/a``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, cast

from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import ObjectPage

MOST_EMPTY_PAGES = 1_000
"""In a row. S3 sends some where many objects were deleted."""


class After(str):
    """In place of a token: the first page of the keys after this one. Some stores count the key itself among them."""


class ListedPage(NamedTuple):
    """A page, which may be empty, and the token of the next one; None after the last."""

    page: ObjectPage
    next_token: str | None


class LoggedPage(NamedTuple):
    """A page of a listing, and what is needed to resume the listing after it."""

    page: ObjectPage
    begin: str
    """The key after which its range of keys begins, which is also the name of the range; empty: the listing is one page
    after the other."""
    next_token: str | None
    """Of the next page of the range; None: the range has ended."""
    next_begin: str | None = None
    """Where a range has ended: the one that follows it; None: with the listing."""


class ListingLog(Protocol):
    """The pages of one listing, kept where a process that lists it again finds them. Used by one thread."""

    def earlier(self) -> Iterator[LoggedPage]:
        """Those of an earlier process, in the order in which they were added."""

    def add(self, logged: LoggedPage) -> None:
        """Adds a page. Never fails: what cannot be kept is listed again."""


class Resumes(Protocol):
    """A store whose listings can be resumed by another process."""

    @property
    def lists_pages(self) -> bool:
        """False for a store without pages."""

    def list_logged(self, prefix: str, log: ListingLog, *, in_ranges: bool) -> Iterator[ObjectPage]:
        """As ``list``, or as ``list_in_ranges`` of a store that ``lists_ranges``: the pages of the log, and then those
        that it lacks, which are added to it."""


def resumable_lister(store: object) -> Resumes | None:
    """The store if its listings can be resumed."""
    resumable = getattr(store, "lists_pages", False) and hasattr(store, "list_logged")
    return cast(Resumes, store) if resumable else None


class ListsByPage(Protocol):
    """A store whose listing can be resumed at any page."""

    @property
    def lists_pages(self) -> bool:
        """False for a wrapper around a store without pages."""

    def list_page(self, prefix: str, token: str | None) -> ListedPage:
        """One request. ``token`` is that of an earlier page; None: the first page; ``After`` a key where the store
        ``lists_ranges``. Raises as ``ObjectStore.list``."""


def page_lister(store: object) -> ListsByPage | None:
    """The store if its listing can be resumed."""
    return cast(ListsByPage, store) if getattr(store, "lists_pages", False) else None


class ListingProgress:
    """Notices a listing that does not advance. Of one listing."""

    def __init__(self, name: str) -> None:
        """``name``: of the bucket, for messages."""
        self._name = name
        self._tokens: set[int] = set()
        """Hashes of the continuation tokens so far: 20,000 for 20 million objects."""
        self._last_keys: set[int] = set()
        """Hashes of the last keys of the pages so far: a page that ends where an earlier one ended has no new key."""
        self._empty_pages = 0

    def check(self, page: ObjectPage, token: str | None) -> None:
        """To be called with each page and the token of the next. Raises StoreProtocolError."""
        if token is None:
            return
        self._empty_pages = 0 if len(page) else self._empty_pages + 1
        if self._empty_pages > MOST_EMPTY_PAGES:
            raise StoreProtocolError(
                f"{self._name}: the store sent {MOST_EMPTY_PAGES} pages without an object in a row"
            )
        if hash(token) in self._tokens:
            raise StoreProtocolError(f"{self._name}: the store sent a continuation token again; the listing has no end")
        self._tokens.add(hash(token))
        if len(page):
            last = hash(page.keys[-1])
            if last in self._last_keys:
                raise StoreProtocolError(f"{self._name}: the store listed the same keys again; the listing has no end")
            self._last_keys.add(last)


def all_pages(
    fetch: Callable[[str | None], ListedPage], name: str, log: ListingLog | None = None
) -> Iterator[ObjectPage]:
    """The pages with objects of a listing. ``fetch`` requests one, on a thread of its own: the next page is in flight
    while the caller works on this one, since a store takes 20 to 200 ms for each. Raises StoreProtocolError for a
    listing that does not advance, and what ``fetch`` raises."""
    progress = ListingProgress(name)
    last: LoggedPage | None = None
    for last in () if log is None else log.earlier():
        progress.check(last.page, last.next_token)
        yield last.page
    if last is not None and last.next_token is None:
        return
    first_token = None if last is None else last.next_token
    with ThreadPoolExecutor(1, "listing") as executor:
        # In a list, from which it is taken before it is asked: an error would hold the frame that holds the future that
        # holds the error, and with them the store, until the garbage collector runs.
        in_flight = [executor.submit(fetch, first_token)]
        while in_flight:
            page, token = in_flight.pop().result()
            progress.check(page, token)
            if token is not None:
                in_flight.append(executor.submit(fetch, token))
            if log is not None and len(page):
                log.add(LoggedPage(page, "", token))
            if len(page):
                yield page
