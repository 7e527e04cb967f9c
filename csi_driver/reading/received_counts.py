"""What was received from stores, counted by each thread for itself."""

from __future__ import annotations

import threading

from csi_driver.reading.fair_shares import note_progress


class ReceivedCounts:
    """May be used from any thread. A thread changes its own numbers: no lock."""

    def __init__(self) -> None:
        self._received: dict[int, list[int]] = {}
        """By thread, bytes received from stores, requests sent to them, and bytes that were received and not written to
        the cache."""

    @property
    def origin_bytes(self) -> int:
        """Received from stores."""
        return sum(count[0] for count in list(self._received.values()))

    @property
    def origin_requests(self) -> int:
        """Sent to stores for bytes, and for access."""
        return sum(count[1] for count in list(self._received.values()))

    @property
    def not_cached_bytes(self) -> int:
        """Received for readers or warmups, and not written to the cache."""
        return sum(count[2] for count in list(self._received.values()))

    def count_received(self, count_bytes: int) -> None:
        note_progress()
        self._own_counts()[0] += count_bytes

    def count_not_cached(self, count_bytes: int) -> None:
        self._own_counts()[2] += count_bytes

    def count_request(self) -> None:
        self._own_counts()[1] += 1

    def _own_counts(self) -> list[int]:
        return self._received.setdefault(threading.get_ident(), [0, 0, 0])
