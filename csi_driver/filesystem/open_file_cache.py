"""Files that stay open for a moment after their last use, because training opens the same small files again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from csi_driver.reading.open_object import OpenObject

MOST_LINGERING = 4096
LINGER_S = 5.0
LINGER_BYTES = 4 << 20
"""A complete file of up to ``LINGER_BYTES`` stays open for ``LINGER_S`` after its last close, up to ``MOST_LINGERING``
of them: finding, opening and closing the object file are about a third of the daemon's work for a warm open (53 to 35
microseconds with four readers). What lingers counts as open until eviction asks for it."""


class OpenFileCache:
    """Opens without a user, by node. Methods may be called from any thread: an open is used by who took it, and by
    nobody else until it is put back. ``_lock`` guards ``_closed``, so that nothing is put in after ``close``; what is
    taken out is one atomic step and needs none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opens: dict[int, tuple[float, OpenObject]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def take(self, node: int) -> OpenObject | None:
        """An open of the node, which is the caller's then."""
        found = self._opens.pop(node, None)
        return None if found is None else found[1]

    def put(self, node: int, opened: OpenObject) -> None:
        """Keeps the open, or closes it if there are too many; of two for one node the later stays."""
        surplus: OpenObject | None = opened
        with self._lock:
            if not self._closed and len(self._opens) < MOST_LINGERING:
                surplus = self.take(node)
                self._opens[node] = (self._clock(), opened)
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        """Closes all, and from now on what is put back: answers still come after a mount has ended."""
        with self._lock:
            self._closed = True
        self.close_older(-1.0)

    def close_older(self, age_s: float) -> None:
        """Closes what was put back longer ago than this."""
        before = self._clock() - age_s
        # Insertion order is the order of time; another thread may take entries out meanwhile.
        for node, (since, _) in list(self._opens.items()):
            if since > before:
                break
            opened = self.take(node)
            if opened is not None:
                opened.close()
