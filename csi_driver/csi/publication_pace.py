"""Spreads calls of one namespace over time, so that many pods that start at once do not hold up the node's reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL_S = 0.02
"""Between two publications of one namespace. Each costs the cache daemon, which answers reads with one interpreter,
some 4 ms of processor time; 70 at once held up cold reads of 110 kB for 40 ms each instead of 4."""

_MOST_NAMESPACES = 1000


class PublicationPace:
    """May be used from any thread."""

    def __init__(
        self,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval_s, self._clock, self._sleep = interval_s, clock, sleep
        self._lock = threading.Lock()  # guards _next; not held while a call sleeps
        self._next: dict[str, float] = {}
        """When the next call of a namespace may begin."""

    def wait(self, namespace: str) -> None:
        """Blocks until the call may begin: not at all after a pause, and ``interval_s`` longer for each call of the
        namespace that waits already; ``rpc/long_calls.py`` bounds these."""
        with self._lock:
            now = self._clock()
            begins = max(now, self._next.get(namespace, now))
            self._next[namespace] = begins + self._interval_s
            if len(self._next) > _MOST_NAMESPACES:
                self._next = {name: at for name, at in self._next.items() if at > now}
        if begins > now:
            self._sleep(begins - now)
