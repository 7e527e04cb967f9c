"""Requests to object stores in numbers: how they ended, how often they were repeated, how long their answers took."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from csi_driver.model.errors import HayloftError
from csi_driver.model.read_counts import NO_DURATIONS, Distribution, Histogram
from csi_driver.objects.store import UnusableResponse

OK = "ok"
ABANDONED = "abandoned"
"""The rest of the answer was not needed: its readers are gone, or another way was taken."""
UNEXPECTED = "unexpected"


class RequestNumbers(NamedTuple):
    """At one moment, of all stores of a process."""

    results: Mapping[str, int] = {}
    """By ``OK``, ``ABANDONED``, the name of the error's class, or ``UNEXPECTED``. Each try counts."""
    retries: int = 0
    """Tries that were sent because the one before had failed."""
    waits: Distribution = NO_DURATIONS
    """From the start of a request to the first bytes of its answer, of those that had one."""


class Request:
    """One that is in flight. Used by one thread at a time."""

    __slots__ = ("_began_s", "_counts", "_result")

    def __init__(self, counts: RequestCounts) -> None:
        self._counts, self._result = counts, ""
        self._began_s: float | None = counts.clock()

    def answered(self) -> None:
        """Bytes of the answer were received. Only the first call counts."""
        if self._began_s is not None:
            began_s, self._began_s = self._began_s, None
            self._counts.add_wait(began_s)

    def end(self, result: str) -> None:
        """Only the first call counts."""
        if not self._result:
            self._result = result
            self._counts.add_result(result)


_MOST_EVENTS = 1024


class RequestCounts:
    """May be used from any thread. ``_lock`` guards all fields but ``_events``, of which append and popleft are atomic:
    two are counted for each small object."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._events: deque[str | float] = deque()
        """Results, and seconds until first bytes, that are not counted in the other fields yet."""
        self._results: Counter[str] = Counter()
        self._retries = 0
        self._waits = Histogram()

    def begin(self, kind: str) -> Request:
        """A request that is about to be sent, to be ended by the caller. ``kind``: what is asked for, one of a few
        words."""
        return Request(self)

    @contextmanager
    def request(self, kind: str) -> Iterator[Request]:
        """Counts the body as one request. ``kind`` as of ``begin``."""
        request = self.begin(kind)
        try:
            yield request
        except GeneratorExit:
            request.end(ABANDONED)
            raise
        except BaseException as error:
            request.end(result_of(error))
            raise
        request.answered()
        request.end(OK)

    def retried(self) -> None:
        """A request is about to be repeated."""
        with self._lock:
            self._retries += 1

    def add_wait(self, began_s: float) -> None:
        """As of ``Request``."""
        self._note(self.clock() - began_s)

    def add_result(self, result: str) -> None:
        """As of ``Request``."""
        self._note(result)

    def numbers(self) -> RequestNumbers:
        """Of this moment."""
        with self._lock:
            self._count_events()
            return RequestNumbers(dict(self._results), self._retries, self._waits.distribution())

    def _note(self, event: str | float) -> None:
        self._events.append(event)
        if len(self._events) >= _MOST_EVENTS:
            with self._lock:
                self._count_events()

    def _count_events(self) -> None:
        """The caller holds the lock."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, str):
                self._results[event] += 1
            else:
                self._waits.add(event)


class ForwardingCounts(RequestCounts):
    """The requests of one store, counted among those of ``counts``. For classes that see each request begin."""

    def __init__(self, counts: RequestCounts) -> None:
        super().__init__(counts.clock)
        self._all = counts

    def begin(self, kind: str) -> Request:
        return self._all.begin(kind)

    def retried(self) -> None:
        self._all.retried()

    def add_wait(self, began_s: float) -> None:
        self._all.add_wait(began_s)

    def add_result(self, result: str) -> None:
        self._all.add_result(result)

    def numbers(self) -> RequestNumbers:
        return self._all.numbers()


def result_of(error: BaseException) -> str:
    """The classes of our own errors are few; those of others are not told apart."""
    known = isinstance(error, (HayloftError, UnusableResponse))
    return type(error).__name__ if known else UNEXPECTED
