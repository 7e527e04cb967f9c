"""Bodies that are continued. Some servers (``python -m http.server``) know no ranges and send each object from its
first byte on; a reader that goes through a large object in ranges would receive it once for each."""

from __future__ import annotations

import threading
import time

from csi_driver.objects.web.web_body import WebBody

MOST_OPEN = 8
KEPT_S = 20.0
"""Servers give up a connection that is not read for longer; most take a minute."""

Which = tuple[str, str | None]
"""Key and version."""


class OpenBodies:
    """Of complete objects, at the position where the last range ended. Safe for any number of threads."""

    def __init__(self) -> None:
        # Guards: _bodies and _most. While held: neither network nor disk.
        self._lock = threading.Lock()
        self._bodies: list[tuple[Which, WebBody, float]] = []
        """And until when they are kept; the oldest first."""
        self._most = MOST_OPEN

    def take(self, which: Which, start: int) -> WebBody | None:
        """The one that is nearest before ``start``, for this caller alone."""
        with self._lock:
            dropped = self._expired()
            fitting = [entry for entry in self._bodies if entry[0] == which and entry[1].position <= start]
            best = max(fitting, key=lambda entry: entry[1].position, default=None)
            if best is not None:
                self._bodies.remove(best)
        _close(dropped)
        return None if best is None else best[1]

    def put(self, which: Which, body: WebBody) -> None:
        with self._lock:
            dropped = self._expired()
            self._bodies.append((which, body, time.monotonic() + KEPT_S))
            while len(self._bodies) > self._most:
                dropped.append(self._bodies.pop(0)[1])
        _close(dropped)

    def close(self) -> None:
        """Closes all, and each that is put from now on."""
        with self._lock:
            self._most, dropped, self._bodies = 0, [body for _, body, _ in self._bodies], []
        _close(dropped)

    def _expired(self) -> list[WebBody]:
        now = time.monotonic()
        expired = [body for _, body, until in self._bodies if until < now]
        self._bodies = [entry for entry in self._bodies if entry[2] >= now]
        return expired


def _close(bodies: list[WebBody]) -> None:
    for body in bodies:
        body.close()
