"""Spreads calls of one namespace over time, so that many pods that start at once do not hold up the node's reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_driver.rpc import callers

SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 0.02, 0.64
"""Between two publications of one namespace. Each costs the cache daemon, which answers reads with one interpreter,
some 4 ms of processor time; 70 at once held up cold reads of 110 kB for 40 ms each instead of 4. With the longest one
less than a hundredth of the time is taken, which the slowest hundredth of other tenants' reads does not show."""
_FORGOTTEN_AFTER_S = 300.0
"""Without a call. Kubelet repeats a call that failed after 2 minutes at the most."""
_MOST_NAMESPACES = 1000


@dataclass
class _Namespace:
    next_s: float
    """When its next call may begin."""
    interval_s: float


class PublicationPace:
    """May be used from any thread."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()  # guards _namespaces and what they hold; not held while a call sleeps
        self._namespaces: dict[str, _Namespace] = {}

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Blocks until the call may begin: not at all after a pause, and an interval longer for each call of the
        namespace that waits already; ``rpc/long_calls.py`` bounds these. A call that raises doubles the interval of
        its namespace up to ``LONGEST_INTERVAL_S``, since kubelet will repeat it; one that does not halves it. Raises
        Interrupted if the caller has left meanwhile."""
        with self._lock:
            namespace, now = self._entry(name), self._clock()
            begins_s = max(now, namespace.next_s)
            namespace.next_s = begins_s + namespace.interval_s
        if begins_s > now:
            self._sleep(begins_s - now)
            callers.require(callers.current())
        factor = 2.0
        try:
            yield
            factor = 0.5
        finally:
            with self._lock:
                interval_s = namespace.interval_s * factor
                namespace.interval_s = min(max(interval_s, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)

    def _entry(self, name: str) -> _Namespace:
        namespace = self._namespaces.get(name)
        if namespace is None:
            now = self._clock()
            if len(self._namespaces) >= _MOST_NAMESPACES:
                self._forget(now)
            namespace = self._namespaces[name] = _Namespace(now, SHORTEST_INTERVAL_S)
        return namespace

    def _forget(self, now: float) -> None:
        """Those that have not called for long; and if these are few, those that have called longest ago."""
        by_call = sorted(self._namespaces.items(), key=lambda item: item[1].next_s)
        kept = [item for item in by_call if item[1].next_s > now - _FORGOTTEN_AFTER_S]
        self._namespaces = dict(kept[-_MOST_NAMESPACES // 2 :])
