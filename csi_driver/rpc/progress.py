"""The progress of a listing, for the call that waits for it: as the caller (``callers.py``), a context variable of the
thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class ListingObserver(Protocol):
    """Its methods must not block."""

    def listed(self, count: int) -> None:
        """So many objects so far."""

    def finished(self, file_count: int, total_bytes: int, remarks: Sequence[tuple[str, str]]) -> None:
        """The snapshot is complete. ``remarks``: a reason in CamelCase, and a sentence, of what a user should know."""


class _Nothing:
    def listed(self, count: int) -> None: ...

    def finished(self, file_count: int, total_bytes: int, remarks: Sequence[tuple[str, str]]) -> None: ...


class _Both:
    """Of a body within another one."""

    def __init__(self, outer: ListingObserver, inner: ListingObserver) -> None:
        self._observers = (outer, inner)

    def listed(self, count: int) -> None:
        for one in self._observers:
            one.listed(count)

    def finished(self, file_count: int, total_bytes: int, remarks: Sequence[tuple[str, str]]) -> None:
        for one in self._observers:
            one.finished(file_count, total_bytes, remarks)


_observer: ContextVar[ListingObserver | None] = ContextVar("hayloft_listing_observer", default=None)


@contextmanager
def observed_by(observer: ListingObserver) -> Iterator[None]:
    """A listing of the body, on this thread, reports to the observer, and to that of a body around it."""
    outer = _observer.get()
    token = _observer.set(observer if outer is None else _Both(outer, observer))
    try:
        yield
    finally:
        _observer.reset(token)


def observer() -> ListingObserver:
    """Of the listing that this thread waits for; one that does nothing if there is none."""
    return _observer.get() or _Nothing()


_STEPS = (5, 2, 1)


def rounded_count(count: int) -> int:
    """Down to 1, 2 or 5 with zeros. For messages that Kubernetes repeats: events of the same text are one object with a
    count, and of a text with an exact number each is another one; so a listing of any length has some ten texts."""
    power = 10 ** max(0, len(str(count)) - 1)
    return next((step * power for step in _STEPS if step * power <= count), 0)
