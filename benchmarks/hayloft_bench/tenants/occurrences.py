"""Counts what several threads do."""

from __future__ import annotations

import threading


class Occurrences:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards count
        self.count = 0

    def add(self) -> None:
        with self._lock:
            self.count += 1
