"""The calls that a server has answered, in numbers."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from csi_driver.model.read_counts import Distribution, Histogram


class CallNumbers(NamedTuple):
    """At one moment."""

    calls: Mapping[tuple[str, str], int] = {}
    """By method and code of gRPC, such as ``("NodeStageVolume", "OK")``."""
    durations: Mapping[str, Distribution] = {}
    """By method."""


class CallCounts:
    """May be used from any thread. ``_lock`` guards all fields. Methods are those that a service of this process has,
    and codes those of gRPC, so their number is bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._durations: defaultdict[str, Histogram] = defaultdict(Histogram)

    def add(self, method: str, code: str, seconds: float) -> None:
        """A call is about to be answered."""
        with self._lock:
            self._calls[method, code] += 1
            self._durations[method].add(seconds)

    def numbers(self) -> CallNumbers:
        """Of this moment."""
        with self._lock:
            durations = {method: histogram.distribution() for method, histogram in self._durations.items()}
            return CallNumbers(dict(self._calls), durations)
