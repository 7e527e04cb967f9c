"""The notifier: a thread that sends notifications to the kernel and polls interrupted readers.

The threads that answer requests must not send notifications: the kernel may block one until requests are answered.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Notifier:
    """Runs actions after a delay, one at a time. ``_changed`` guards ``_due`` and ``_stopped``; no action runs under
    it."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drops all actions that have not begun. Does not block: the running one may be blocked in the kernel."""
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
            # Without the lock: the kernel may block the action, and ``after`` must never block a thread that answers.
            try:
                action()
            except BaseException:  # noqa: BLE001 - the actions of other readers still have to run
                _log.exception("%s: unexpected error in a notification, which is dropped", self._thread.name)

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                wait_s = self._due[0][0] - time.monotonic() if self._due else None
                if wait_s is not None and wait_s <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait_s)
            return None
