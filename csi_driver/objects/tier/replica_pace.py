"""Which replicas are passed over for a while, because they send their first byte far later than the bucket does.

A replica that fails or hangs is left by ``replica_health.py``. One that is slow, and sends, is worth less than none at
all: without it the next replica or the bucket is asked.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

TIMES, LEAST_S = 4.0, 1.0
"""A replica is slow if the median of its hits takes more than so many times that of the bucket, and so long: without
it, its readers wait for the bucket, as the next replica has not got the bytes. Replicas that many nodes ask at the same
moment take some hundred milliseconds, and are just what keeps these nodes from the bucket. Misses do not count: they
take as long as the bucket, and an empty replica would never fill."""
ANSWERS = 8
"""The last so many decide, of one minute; so many requests find out, after each pause, whether it is still slow."""
LAST_S, BUCKET_LASTS_S = 60.0, 300.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 300.0
"""Doubled each time that it is found to be slow again."""
TRIAL_S = 10.0
"""After a pause, requests that find out are no longer awaited after so long, and others are sent."""
COMPARE_EVERY = 2
"""Of the requests to a replica that is far slower than the others, while nothing tells what the bucket would take, one
in so many goes to the next replica, or the bucket: eight, in five minutes, are enough."""

_Times = deque[tuple[float, float]]


def _times() -> _Times:
    return deque(maxlen=ANSWERS)


@dataclass(slots=True)
class _Replica:
    hits: _Times = field(default_factory=_times)
    pauses: int = 0
    """In a row; 0: it is not slow."""
    until_s: float = 0.0
    tries: int = 0
    """Requests that may still be sent, after a pause, before others pass it over."""
    trial_until_s: float = 0.0
    asked: int = 0


class ReplicaPace:
    """Of all replicas of a daemon. ``_lock`` guards all fields; it is held for single steps only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._replicas: dict[str, _Replica] = {}
        self._bucket = _times()

    def bucket(self, wait_s: float) -> None:
        """The bucket has sent the first byte after so long; or a replica that had to ask it."""
        with self._lock:
            self._bucket.append((self._clock(), wait_s))

    def hit(self, name: str, wait_s: float) -> bool:
        """The replica has, of what it had. True if it is passed over from now on, and was not before."""
        with self._lock:
            replica, now = self._replicas.setdefault(name, _Replica()), self._clock()
            replica.hits.append((now, wait_s))
            ours = _median(replica.hits, now - LAST_S)
            if ours is None or now < replica.until_s:
                return False
            if ours <= LEAST_S:
                replica.pauses = 0
                return False
            theirs = self._of_bucket(now)
            if theirs is None:
                return False
            if ours <= TIMES * theirs:
                replica.pauses = 0
                return False
            if self._passed_over(now) >= max(1, len(self._replicas) // 2):
                return False  # what is slow now is perhaps this node
            is_new = not replica.pauses
            replica.pauses += 1
            replica.until_s = now + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (replica.pauses - 1))
            replica.hits.clear()
            replica.tries = ANSWERS
            replica.trial_until_s = replica.until_s + TRIAL_S
            return is_new

    def may_ask(self, name: str) -> bool:
        """For each request: False if the replica is passed over. After a pause, True for a few."""
        replica = self._replicas.get(name)
        if replica is None:
            return True
        with self._lock:
            now = self._clock()
            if not replica.pauses:
                return not self._is_to_be_compared(name, replica, now)
            if now < replica.until_s:
                return False
            if now >= replica.trial_until_s:
                replica.tries, replica.trial_until_s = ANSWERS, now + TRIAL_S
            if not replica.tries:
                return False
            replica.tries -= 1
            return True

    def passed_over(self) -> int:
        """How many replicas are, at the moment."""
        with self._lock:
            return self._passed_over(self._clock())

    def retain(self, names: frozenset[str]) -> None:
        """Forgets all others, which have left."""
        with self._lock:
            for name in [name for name in self._replicas if name not in names]:
                del self._replicas[name]

    # -- with the lock --

    def _passed_over(self, now_s: float) -> int:
        return sum(now_s < replica.until_s for replica in self._replicas.values())

    def _of_bucket(self, now_s: float) -> float | None:
        return _median(self._bucket, now_s - BUCKET_LASTS_S)

    def _is_to_be_compared(self, name: str, replica: _Replica, now_s: float) -> bool:
        replica.asked += 1
        if replica.asked % COMPARE_EVERY:
            return False
        ours = _median(replica.hits, now_s - LAST_S)
        if ours is None or ours <= LEAST_S or self._of_bucket(now_s) is not None:
            return False
        others = [_median(other.hits, now_s - LAST_S) for key, other in self._replicas.items() if key != name]
        return ours > TIMES * min((each for each in others if each is not None), default=0.0)


def _median(times: _Times, since_s: float) -> float | None:
    """None: too few, or too old."""
    waits = [wait_s for at_s, wait_s in times if at_s >= since_s]
    return median(waits) if len(waits) >= ANSWERS else None
