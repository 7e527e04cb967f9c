"""What was read from which place of the volumes with mirrors, for metrics."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple


class PlaceNumbers(NamedTuple):
    """Since the start of the daemon, of all its volumes."""

    reads: int = 0
    """Requests that the place has answered completely."""
    received_bytes: int = 0
    failovers: int = 0
    """How often the place began to fail, and others were read instead."""
    refused: int = 0
    """Objects, as often as they were found missing there or of another version."""


def place_name(number: int) -> str:
    """``url``, ``mirror1`` and so on: few, and no URL, which may hold what is not to be shown."""
    return f"mirror{number}" if number else "url"


class MirrorCounts:
    """Of a daemon. May be used from any thread. ``_lock`` guards ``_places``; it is held for single steps only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[int, PlaceNumbers] = {}

    def read(self, number: int, count_bytes: int, *, is_complete: bool = True) -> None:
        """Bytes were received from the place."""
        self._add(number, PlaceNumbers(int(is_complete), count_bytes))

    def failed(self, number: int) -> None:
        """The place began to fail."""
        self._add(number, PlaceNumbers(failovers=1))

    def refused(self, number: int) -> None:
        """An object there is not the one that was listed."""
        self._add(number, PlaceNumbers(refused=1))

    def numbers(self) -> Mapping[str, PlaceNumbers]:
        """By ``place_name``; empty as long as no volume with mirrors was read."""
        with self._lock:
            return {place_name(number): numbers for number, numbers in sorted(self._places.items())}

    def _add(self, number: int, more: PlaceNumbers) -> None:
        with self._lock:
            before = self._places.get(number, PlaceNumbers())
            self._places[number] = PlaceNumbers(*(a + b for a, b in zip(before, more, strict=True)))
