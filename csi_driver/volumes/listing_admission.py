"""Which listing may run: so many in all, of one namespace and of one store. Others wait, for a bounded time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_driver.model.errors import BudgetExceeded
from csi_driver.rpc import callers
from csi_driver.settings import ListingSettings


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a listing may wait, and how many of its namespace may wait with it."""

    wait_s: float
    waiting: float


OF_STRANGERS = Patience(10.0, 16)
"""Each wait occupies a thread of the server. Kubelet repeats a mount after 0.5 s, then at growing intervals."""

OF_ADMINISTRATORS = Patience(60.0, math.inf)
"""All pods of a node may start at once. ``rpc/long_calls.py`` bounds the threads."""

OF_WARMUPS = Patience(math.inf, math.inf)
"""Their threads are their own."""


@dataclass(frozen=True, slots=True, eq=False)
class _Listing:
    namespace: str
    """Empty: not known."""
    store: str


class ListingAdmission:
    """May be used from any thread.

    A namespace begins one more listing only while at least as many more are free as it has then, in all and of the
    store. So one namespace cannot occupy all: the first listing of another one finds a place.
    """

    def __init__(self, settings: ListingSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        # Guards: _running and _waiting. While held: no I/O; it is released while a listing waits or runs.
        self._changed = threading.Condition()
        self._running: list[_Listing] = []
        self._waiting: list[_Listing] = []
        """In the order of their requests."""

    @contextmanager
    def admitted(self, namespace: str, store: str, patience: Patience) -> Iterator[None]:
        """Waits until the listing may run, and counts it during the body. Raises BudgetExceeded, which names the limit;
        Interrupted when the caller is gone."""
        listing = _Listing(namespace, store)
        self._wait(listing, patience)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(listing)
                self._changed.notify_all()

    def _wait(self, listing: _Listing, patience: Patience) -> None:
        caller, deadline_s = callers.current(), self._clock() + patience.wait_s
        with self._changed:
            if sum(other.namespace == listing.namespace for other in self._waiting) >= patience.waiting:
                raise BudgetExceeded(self._refusal(listing))
            self._waiting.append(listing)
            try:
                while self._next() is not listing:
                    callers.require(caller)
                    if self._clock() >= deadline_s:
                        raise BudgetExceeded(self._refusal(listing))
                    self._changed.wait(callers.POLL_S)
                self._running.append(listing)
            finally:
                self._waiting.remove(listing)
                self._changed.notify_all()  # the next one may begin beside this one

    def _next(self) -> _Listing | None:
        """Of the listings that fit: of the namespace with the fewest running ones, the one that waits longest."""
        fitting = [listing for listing in self._waiting if not self._limit(listing)]
        return min(fitting, key=lambda listing: self._count(namespace=listing.namespace), default=None)

    def _limit(self, listing: _Listing) -> str:
        """The limit that the listing would exceed now; empty: it may run."""
        settings, namespace, store = self._settings, listing.namespace, listing.store
        of_namespace = self._count(namespace=namespace)
        if of_namespace >= settings.of_one_namespace:
            return f"the most that one namespace may have ({settings.of_one_namespace})"
        free = settings.processes - len(self._running)
        if of_namespace + 1 > free:
            return "so many that the rest is left to other namespaces"
        of_store = self._count(store=store)
        if self._count(namespace=namespace, store=store) + 1 > settings.of_one_store - of_store:
            return f"the most that its store gets for one namespace while others list there ({settings.of_one_store})"
        return ""

    def _count(self, *, namespace: str | None = None, store: str | None = None) -> int:
        return sum(
            namespace in (None, listing.namespace) and store in (None, listing.store) for listing in self._running
        )

    def _refusal(self, listing: _Listing) -> str:
        limit = self._limit(listing) or "others of its namespace wait as well"
        whose = f"namespace {listing.namespace!r}" if listing.namespace else "volumes of administrators"
        return (
            f"the budget of listings (--listings={self._settings.processes}) is used up for {whose}: in flight are "
            f"{limit}; retry, or have the operator raise --listings"
        )
