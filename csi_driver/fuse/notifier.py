"""A thread for what a serving thread must not do: notifications to the kernel, which can wait for the very requests
that the serving threads answer, and looking after interrupted readers."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Notifier:
    """Runs actions after a delay, one at a time. ``_changed`` guards all fields."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Drops what is not due yet. Does not wait: an action may be waiting in the kernel."""
        with self._changed:
            self._stopped = True
            self._due.clear()
            self._changed.notify()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Runs the action on the thread, not before the delay. May be called from any thread, and never blocks."""
        with self._changed:
            if not self._stopped:
                heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._numbers), action))
                self._changed.notify()

    def _run(self) -> None:
        while True:
            action = self._next()
            if action is None:
                return
            try:
                action()
            except Exception:  # noqa: BLE001 - one action that fails must not end those of all other readers
                _log.exception("housekeeping of a FUSE session failed")

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                wait_s = self._due[0][0] - time.monotonic() if self._due else None
                if wait_s is not None and wait_s <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait_s)
            return None
