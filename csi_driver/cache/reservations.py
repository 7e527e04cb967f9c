"""Bytes of the cache that are reserved for a dataset while a volume with ``cacheReservation`` is mounted."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

from csi_driver.model.errors import CacheOvercommitted


class Reservations:
    """Reservations by holder (a mount). Volumes of the same dataset share their bytes: the largest reservation counts.
    ``_lock`` guards changes of ``_held``, which is replaced as a whole and may be read without it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._held: dict[str, tuple[int, int]] = {}

    def reserve(self, holder: str, dataset: int, count_bytes: int, *, adopted: bool = False) -> None:
        """Reserves so many bytes for the dataset until ``end``. Raises CacheOvercommitted if all reservations together
        are more than the cache may hold; one that was ``adopted`` was granted before and stays."""
        if not count_bytes:
            return
        with self._lock:
            others = {key: held for key, held in self._held.items() if key != holder}
            now = {**others, holder: (dataset, count_bytes)}
            total, before = sum(_by_dataset(now).values()), sum(_by_dataset(others).values())
            if total > self.limit_bytes and not adopted:
                raise CacheOvercommitted(
                    f"cacheReservation: {count_bytes} bytes cannot be reserved: {before} of the cache's "
                    f"{self.limit_bytes} bytes are reserved by other volumes on this node; ask for at most "
                    f"{max(0, self.limit_bytes - before)}, unmount another volume, or raise --cache-limit"
                )
            self._held = now

    def end(self, holder: str) -> None:
        """Releases the reservation of a holder. A holder without one is success."""
        with self._lock:
            self._held = {key: held for key, held in self._held.items() if key != holder}

    def protected_from(self, dataset: int) -> Iterator[Mapping[int, int]]:
        """Bytes by dataset that an eviction for this dataset must leave: first all that is reserved, then, if the
        dataset has a reservation itself, all but its own."""
        reserved = _by_dataset(self._held)
        yield reserved
        if dataset in reserved:
            yield {key: count_bytes for key, count_bytes in reserved.items() if key != dataset}


def _by_dataset(held: Mapping[str, tuple[int, int]]) -> dict[int, int]:
    reserved: dict[int, int] = {}
    for dataset, count_bytes in held.values():
        reserved[dataset] = max(reserved.get(dataset, 0), count_bytes)
    return reserved
