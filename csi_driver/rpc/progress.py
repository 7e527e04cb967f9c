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


_observer: ContextVar[ListingObserver | None] = ContextVar("hayloft_listing_observer", default=None)


@contextmanager
def observed_by(observer: ListingObserver) -> Iterator[None]:
    """A listing of the body, on this thread, reports to the observer."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def observer() -> ListingObserver:
    """Of the listing that this thread waits for; one that does nothing if there is none."""
    return _observer.get() or _Nothing()
