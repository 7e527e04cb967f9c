"""Which objects to let go of: a function of values."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from csi_driver.chunks.index import IndexRow


def choose_victims(rows: Iterable[IndexRow], need_bytes: int) -> list[IndexRow]:
    """The objects to drop so that at least ``need_bytes`` become free, or all of them if that is not enough.

    Least recently used first.
    Rows of objects in use must not be given.
    """
    oldest = [(row.last_use, row.digest, row) for row in rows if row.present_bytes]
    heapq.heapify(oldest)
    victims, freed = [], 0
    while oldest and freed < need_bytes:
        victim = heapq.heappop(oldest)[2]
        victims.append(victim)
        freed += victim.present_bytes
    return victims
