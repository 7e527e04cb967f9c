"""Which replicas are left alone for a while, because they have failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Doubled with each failure in a row: a replica that restarts is asked again within seconds, and one that hangs costs
one reader a minute its time-out."""


@dataclass(slots=True)
class _Failures:
    count: int = 0
    until_s: float = 0.0
    probing_until_s: float = 0.0
    """A request finds out whether it works again; until its end, or this time, no other one goes there."""


class ReplicaHealth:
    """For all volumes of a daemon. ``_lock`` guards ``_failures``; it is held for single steps only."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``timeout_s``: after so long the end of a request that finds out is no longer awaited."""
        self._timeout_s, self._clock = timeout_s, clock
        self._lock = threading.Lock()
        self._failures: dict[str, _Failures] = {}

    def may_ask(self, replica: str) -> bool:
        """After a pause, True for one caller, whose request finds out whether the replica works again."""
        if not self._failures:  # nearly always
            return True
        with self._lock:
            failures = self._failures.get(replica)
            if failures is None:
                return True
            now = self._clock()
            if now < failures.until_s or now < failures.probing_until_s:
                return False
            failures.probing_until_s = now + self._timeout_s
            return True

    def is_well(self, replica: str) -> bool:
        """Whether its last request did not fail."""
        return replica not in self._failures

    def may_be_probed(self, replica: str) -> bool:
        """Whether ``may_ask`` would be True."""
        with self._lock:
            failures, now = self._failures.get(replica), self._clock()
            return failures is None or (now >= failures.until_s and now >= failures.probing_until_s)

    def worked(self, replica: str) -> None:
        """It has answered, whatever the answer was."""
        if self._failures and replica in self._failures:
            with self._lock:
                self._failures.pop(replica, None)

    def failed(self, replica: str) -> bool:
        """True if it had worked until now. Failures of requests that were in flight together count once."""
        with self._lock:
            now = self._clock()
            failures = self._failures.setdefault(replica, _Failures())
            if now < failures.until_s:
                return False
            failures.count += 1
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures.count - 1))
            failures.until_s, failures.probing_until_s = now + pause_s, 0.0
            return failures.count == 1

    def left_alone(self, replicas: Iterable[str]) -> int:
        """How many of them are not asked at the moment."""
        with self._lock:
            now = self._clock()
            return sum(now < self._failures[name].until_s for name in replicas if name in self._failures)

    def retain(self, replicas: frozenset[str]) -> None:
        """Forgets all others, which have left."""
        with self._lock:
            for name in [name for name in self._failures if name not in replicas]:
                del self._failures[name]
