"""Lists a bucket by several requests at a time, each for a range of its keys.

A store that is 50 ms away lists 20,000 objects a second, page after page. Here a thread without work divides the widest
range that another one lists: it asks for the page after a key between (``key_ranges.py``). If that page has objects,
the range is listed by two threads from now on; if it is empty or beyond the range, nothing lies in that part, and a key
before it is tried next. The page is part of the listing in any case, so no request is made for nothing but an empty
page.

This rests on the order of keys, which not every store keeps: some list by directory, and leave out all keys below
``p/a/`` after the key ``p/a``. So two things are checked: keys ascend in all pages of a range, and where one range ends
the store lists the same keys after it as at the beginning of the next. Then the ranges together are what the store
would list one page after the other. Otherwise ``KeysNotInOrder`` is raised, and the caller lists anew, page after page.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol, cast

from csi_driver.model.errors import HayloftError
from csi_driver.model.snapshot import ObjectPage
from csi_driver.objects.key_ranges import midpoint, width
from csi_driver.objects.listing_pages import After, ListedPage, ListingLog, ListingProgress, LoggedPage

REQUESTS = 16
"""In flight at a time. A page of 1,000 keys takes some 3 ms of processor time to read, so more than 20 at 50 ms each
would wait for the processor. S3 takes thousands of requests a second."""

PAGES_BEFORE = 4
"""A listing is divided after so many pages: most end before, and no request is made in vain for these."""

MOST_EMPTY_PROBES = 64
"""In a row, into one range: seven find the end of the characters that occur in one place of the keys."""

FREE_PROBES, PAGES_PER_PROBE = 32, 4
"""Of all requests so many, and one more for each so many pages, may bring nothing."""

Fetch = Callable[[str | None], ListedPage]
"""As ``ListsByPage.list_page`` with a prefix, with retries. Of one range: used by one thread at a time."""


class KeysNotInOrder(Exception):
    """The store does not list keys in the order of their bytes: its listing cannot be divided."""


class ListsRanges(Protocol):
    """A store that begins a listing at any key."""

    @property
    def lists_ranges(self) -> bool:
        """False for a wrapper around a store that does not."""

    def list_in_ranges(self, prefix: str) -> Iterator[ObjectPage]:
        """As ``ObjectStore.list``, by several requests at a time. Raises KeysNotInOrder, after any number of pages."""


def range_lister(store: object) -> ListsRanges | None:
    """The store if it begins listings at any key."""
    return cast(ListsRanges, store) if getattr(store, "lists_ranges", False) else None


class _Range:
    """Keys from ``last`` to ``stop``, which one thread lists. Guarded by the lock of the listing, but for what its
    thread alone uses."""

    def __init__(self, name: str, last: str, stop: str | None) -> None:
        self.begin = last
        """The key after which it begins. No other range begins there."""
        self.next_begin: str | None = None
        """Of the next range."""
        self.progress = ListingProgress(name)
        """Used by the thread of the range alone."""
        self.last = last
        """The last key that was listed; at first the key after which the range begins."""
        self.stop = stop
        """The first key of the next range; None: the end."""
        self.next: Sequence[str] = ()
        """The keys of the first page of the next range, as the store listed them."""
        self.edge = stop
        """Nothing lies between it and ``stop``, as far as is known."""
        self.empty_probes = 0
        self.probed = False
        """A thread asks for a page in it."""


class KnownRanges:
    """The ranges of a listing whose process has ended, from the pages that it logged. Each page of a range was logged
    with the token of the next one, so a range is resumed where its log ends. A range of which no page was logged is
    known by the one before it, if that has ended: otherwise its keys are still those of the one before it."""

    def __init__(self) -> None:
        self._logged: dict[str, list[LoggedPage]] = {}
        """By range, the first and the last page with objects, and the last page."""
        self.page_count = 0

    def add(self, logged: LoggedPage) -> None:
        pages = self._logged.setdefault(logged.begin, [logged, logged, logged])
        pages[1:] = (logged if len(logged.page) else pages[1]), logged
        self.page_count += 1

    def unfinished(self, name: str) -> list[tuple[_Range, str]]:
        """With the token of the next page of each."""
        begins = {logged.next_begin for _, _, logged in self._logged.values() if logged.next_begin is not None}
        found: list[tuple[_Range, str]] = []
        following: tuple[str, Sequence[str]] | None = None
        for begin in sorted(begins | set(self._logged), reverse=True):
            range_, token = self._range(name, begin)
            if token is not None:
                if following is not None:
                    range_.next_begin, range_.next = following
                    range_.stop = range_.edge = range_.next[0] if range_.next else following[0]
                found.append((range_, token))
            pages = self._logged.get(begin)
            following = begin, (pages[0].page.keys if pages else ())
        return found[::-1]

    def _range(self, name: str, begin: str) -> tuple[_Range, str | None]:
        range_ = _Range(name, begin, None)
        pages = self._logged.get(begin)
        if pages is None:
            return range_, After(begin)
        if len(pages[1].page):
            range_.last = pages[1].page.keys[-1]
        return range_, pages[2].next_token


class _Listing:
    """``_lock`` guards all fields but ``_pages``; it is not held while a page is requested or handed over."""

    def __init__(self, new_fetch: Callable[[], Fetch], prefix: str, name: str, requests: int) -> None:
        self._new_fetch, self._prefix, self._name = new_fetch, prefix, name
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._ranges = [_Range(name, prefix, None)]
        """That are being listed."""
        self._running = 1
        """Threads that list a range or probe."""
        self._page_count = self._empty_probes = 0
        self._stopped = False
        self._most_threads = requests
        self._threads: list[threading.Thread] = []
        # Bounded: pages wait here while the caller works on others. None: a thread has ended.
        self._pages: queue.Queue[LoggedPage | BaseException | None] = queue.Queue(2 * requests)
        self._unfinished: list[tuple[_Range, str]] = []
        """Ranges of an earlier process that no thread lists yet, with the token of the next page. Guarded by the
        lock."""

    def resume(self, known: KnownRanges) -> bool:
        """To be called before ``pages``. False: nothing is left to list."""
        self._unfinished = known.unfinished(self._name)
        self._ranges = [range_ for range_, _ in self._unfinished]
        self._running, self._page_count = len(self._unfinished), known.page_count
        return bool(self._unfinished)

    def pages(self) -> Generator[LoggedPage, None, None]:
        self._start_thread(self._list_unfinished if self._unfinished else self._list_first)
        ended = 0
        try:
            while ended < len(self._threads):  # the first one starts the others before it ends
                found = self._pages.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    ended += 1
                else:
                    yield found
                    del found  # or this frame would keep a page in memory while it waits for the next one
        finally:
            self._end()

    def _end(self) -> None:
        """Ends the threads: requests in flight are waited for, as those of a listing page after page are."""
        with self._lock:
            self._stopped = True
            self._changed.notify_all()
        while any(thread.is_alive() for thread in self._threads):
            try:
                self._pages.get(timeout=0.05)  # a thread may wait for a place in the queue
            except queue.Empty:
                continue

    # -- threads ------------------------------------------------------------------------------------------------------

    def _start_thread(self, begin: Callable[[], None]) -> None:
        name = f"listing-{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=(begin,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _list_first(self) -> None:
        range_, fetch, token = self._ranges[0], self._new_fetch(), None
        for _ in range(PAGES_BEFORE):
            token = self._list_page(range_, fetch(token))
            if token is None or self._stopped:
                self._finished()
                return
        self._start_others(lambda: None)
        self._list(range_, fetch, token)

    def _start_others(self, begin: Callable[[], None]) -> None:
        for _ in range(1, self._most_threads):
            self._start_thread(begin)

    def _list_unfinished(self) -> None:
        self._start_others(self._list_more)
        self._list_more()

    def _list_more(self) -> None:
        """Lists ranges of an earlier process until each has a thread."""
        while not self._stopped:
            with self._lock:
                if not self._unfinished:
                    return
                range_, token = self._unfinished.pop(0)
            self._list(range_, self._new_fetch(), token)

    def _work(self, begin: Callable[[], None]) -> None:
        try:
            begin()
            while (range_ := self._range_to_divide()) is not None:
                self._probe(*range_)
        except BaseException as error:  # noqa: BLE001  # raised where the pages are taken
            with self._lock:
                self._stopped = True
                self._changed.notify_all()
            self._pages.put(error)
        self._pages.put(None)

    def _range_to_divide(self) -> tuple[_Range, str] | None:
        """The widest one, and a key in it. Waits while there is none; returns None when all is listed."""
        with self._lock:
            while not self._stopped and self._running:
                affordable = self._empty_probes < FREE_PROBES + self._page_count // PAGES_PER_PROBE
                found = max(
                    (range_ for range_ in self._ranges if affordable and self._is_divisible(range_)),
                    key=lambda range_: width(range_.last, range_.edge, self._prefix),
                    default=None,
                )
                if found is not None:
                    key = midpoint(found.last, found.edge, self._prefix)
                    if key is not None:
                        found.probed = True
                        self._running += 1
                        return found, key
                    found.empty_probes = MOST_EMPTY_PROBES
                    continue
                self._changed.wait()
            return None

    @staticmethod
    def _is_divisible(range_: _Range) -> bool:
        return not range_.probed and range_.empty_probes < MOST_EMPTY_PROBES

    def _probe(self, range_: _Range, key: str) -> None:
        fetch = self._new_fetch()
        try:
            new, token = self._divided_at(range_, key, fetch)
        finally:
            with self._lock:
                range_.probed = False
        if new is None or token is None:
            self._finished()
        else:
            self._list(new, fetch, token)

    def _divided_at(self, range_: _Range, key: str, fetch: Fetch) -> tuple[_Range | None, str | None]:
        """The new range and the token of its second page; None and None if it has none, or there is no range."""
        try:
            listed = fetch(After(key))
        except HayloftError:
            # Whatever it is, the thread of the range meets it too, unless it is about this request.
            with self._lock:
                range_.empty_probes = MOST_EMPTY_PROBES
            return None, None
        _check_order(listed.page, key, self._name)
        new = self._divided(range_, key, listed)
        return (None, None) if new is None else (new, self._list_page(new, listed))

    def _divided(self, range_: _Range, key: str, listed: ListedPage) -> _Range | None:
        """The range of the page, which is taken out of ``range_``; None if nothing is to be taken out."""
        first = listed.page.keys[0] if len(listed.page) else None
        with self._lock:
            if range_ not in self._ranges:
                self._empty_probes += 1
                return None
            if first is None or (range_.edge is not None and first >= range_.edge):
                if range_.edge is None or key < range_.edge:
                    range_.edge = key
                range_.empty_probes += 1
                self._empty_probes += 1
                return None
            if range_.last >= first:  # its thread has passed the key meanwhile
                self._empty_probes += 1
                return None
            new = _Range(self._name, key, range_.stop)
            new.next, new.edge, new.next_begin = range_.next, range_.edge, range_.next_begin
            range_.stop = range_.edge = first
            range_.next, range_.next_begin = listed.page.keys, key
            range_.empty_probes = 0
            self._ranges.append(new)
            self._changed.notify()
            return new

    def _list(self, range_: _Range, fetch: Fetch, token: str | None) -> None:
        """Lists the rest of the range, from the page of the token on."""
        while token is not None and not self._stopped:
            token = self._list_page(range_, fetch(token))
        self._finished()

    def _list_page(self, range_: _Range, listed: ListedPage) -> str | None:
        """Hands the page over; returns the token of the next one of the range."""
        _check_order(listed.page, range_.last, self._name)
        range_.progress.check(listed.page, listed.next_token)
        page, ended = self._within(range_, listed.page, listed.next_token is None)
        token = None if ended else listed.next_token
        if len(page) or ended:
            # A range that has ended is no longer divided, so its successor stays.
            self._pages.put(LoggedPage(page, range_.begin, token, range_.next_begin if ended else None))
        return token

    def _within(self, range_: _Range, page: ObjectPage, is_last: bool) -> tuple[ObjectPage, bool]:
        """The part of the page that belongs to the range, and whether the range has ended."""
        keys = page.keys
        with self._lock:
            self._page_count += 1
            stop = range_.stop
            ended = is_last or (stop is not None and len(keys) > 0 and keys[-1] >= stop)
            if ended:
                self._ranges.remove(range_)
            elif len(keys):
                range_.last = keys[-1]
            self._changed.notify()  # of one thread that has nothing to do: the range may be divisible now
        if stop is None or not ended:
            return page, ended
        inside = next((row for row, key in enumerate(keys) if key >= stop), len(keys))
        after = keys[inside : inside + len(range_.next)]
        if not after or list(after) != list(range_.next[: len(after)]):
            raise KeysNotInOrder(f"{self._name}: after the same key the store lists other keys")
        return part_of(page, inside), True

    def _finished(self) -> None:
        with self._lock:
            self._running -= 1
            self._changed.notify_all()


def _check_order(page: ObjectPage, last: str, name: str) -> None:
    """Raises KeysNotInOrder unless the keys ascend, from ``last`` on."""
    keys = page.keys
    if len(keys) and (keys[0] < last or any(map(str.__ge__, keys, keys[1:]))):
        raise KeysNotInOrder(f"{name}: the store lists keys out of order")


def part_of(page: ObjectPage, stop: int) -> ObjectPage:
    """The first ``stop`` entries of a page."""
    if stop == len(page):
        return page
    keys = page.keys[:stop]
    known = set(keys)
    return ObjectPage(
        keys,
        page.sizes_bytes[:stop],
        page.etags[:stop],
        page.mtimes_ns[:stop],
        page.unreadable,
        [key for key in page.archived if key in known],
    )


def pages_in_ranges(
    new_fetch: Callable[[], Fetch],
    prefix: str,
    name: str,
    requests: int = REQUESTS,
    log: ListingLog | None = None,
) -> Iterator[ObjectPage]:
    """The pages with objects, in any order. ``new_fetch`` makes what requests the pages of one range; ``name`` is that
    of the bucket, for messages. With a log: first its pages, and then those of the ranges that it says are unfinished.
    Raises KeysNotInOrder, StoreProtocolError, and what a fetch raises."""
    listing, known = _Listing(new_fetch, prefix, name, requests), KnownRanges()
    for logged in () if log is None else log.earlier():
        known.add(logged)
        if len(logged.page):
            yield logged.page
    if known.page_count and not listing.resume(known):
        return
    with contextlib.closing(listing.pages()) as pages:
        for logged in pages:
            if log is not None:
                log.add(logged)  # before it is handed over: a process that ends here has it in the log
            if len(logged.page):
                yield logged.page
