"""How fast a warmup may go: a limit of bytes a second, a rate to report, and a gate that lets readers go first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

RATE_WINDOW_S = 10.0
"""A rate is over so many seconds: long enough for a few fetches of 16 MiB, short enough to show a standstill."""

_SAMPLE_S = 0.5

_LOOK_AGAIN_S = 0.02
"""How often the gate is tried while readers have work waiting: they come and go within milliseconds."""

LIGHT_BYTES = 1 << 20
"""A fetch of at most so much is a light one: a store takes 20 to 200 ms for it, however small it is."""
LIGHT = 8
"""So many light fetches for one of the others, which are of up to 16 MiB. With 4 at a time and 100 ms each, files of
110 kB would come at 4 MB/s; with 32 it is 35."""

Clock = Callable[[], float]


class RateLimit:
    """A limit of bytes a second for fetches that are begun one after another; 0: no limit.

    Each fetch has its place in time, as long as its bytes take at that rate. No credit is saved up while nothing is
    fetched, so that in any span no more is begun than the rate allows, and one fetch. ``_lock`` guards ``_free_at``.
    """

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count_bytes: int) -> float:
        """Takes the next place in time; how many seconds it is ahead."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = self._clock()
            begin = max(now, self._free_at)
            self._free_at = begin + count_bytes / self._rate
        return begin - now

    def give_back(self, count_bytes: int) -> None:
        """Bytes that had their place were not fetched after all."""
        if self._rate:
            with self._lock:
                self._free_at -= count_bytes / self._rate


class RateMeter:
    """Bytes a second over the last ``RATE_WINDOW_S``. The caller serialises."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._total_bytes = 0

    def add(self, count_bytes: int) -> None:
        """So many bytes came."""
        self._total_bytes += count_bytes
        now = self._clock()
        if now - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, self._total_bytes))
            self._forget(now)

    def bytes_per_second(self) -> float:
        """0 until something came."""
        now = self._clock()
        self._forget(now)
        since, had = self._samples[0]
        return (self._total_bytes - had) / (now - since) if now > since else 0.0

    def _forget(self, now: float) -> None:
        """The newest sample that is old enough stays: it is where the window begins."""
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_WINDOW_S:
            self._samples.popleft()


class Foreground(NamedTuple):
    """What the fetcher has to do for readers: is anything waiting, and how many of its threads are at work."""

    waiting: bool
    engaged: int


def may_begin(foreground: Foreground, running: int, most: int, *, light: bool = False) -> bool:
    """Whether one more fetch of a warmup may begin beside ``running`` of its kind.

    None begins while a reader's fetch waits for a thread. While readers have fetches running, one warmup fetch at a
    time goes on beside them: it would never end beside a training that always reads. Of ``light`` ones it is
    ``LIGHT`` times as many.
    """
    return not foreground.waiting and running < (1 if foreground.engaged else most) * (LIGHT if light else 1)


def nobody() -> Foreground:
    """No readers."""
    return Foreground(waiting=False, engaged=0)


class AdmissionGate:
    """Where the fetches of all warmups of a daemon begin. Those of small objects, the ``light`` ones, are counted
    apart. ``_lock`` guards ``_running``."""

    def __init__(self, foreground: Callable[[], Foreground], most: int) -> None:
        """``most`` fetches at a time, all warmups together, and ``LIGHT`` times as many light ones."""
        self._foreground = foreground
        self.most = most
        self._lock = threading.Lock()
        self._running = {True: 0, False: 0}
        """By whether they are light."""

    def enter(self, wait: Callable[[float], bool], *, light: bool = False) -> bool:
        """Blocks until a fetch may begin; False if ``wait`` said that it is not wanted any more."""
        while not self._try(light):
            if wait(_LOOK_AGAIN_S):
                return False
        return True

    def leave(self, *, light: bool = False) -> None:
        """The fetch has ended."""
        with self._lock:
            self._running[light] -= 1

    def _try(self, light: bool) -> bool:
        with self._lock:
            if not may_begin(self._foreground(), self._running[light], self.most, light=light):
                return False
            self._running[light] += 1
        return True
