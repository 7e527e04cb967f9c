"""Which objects to evict: a function of values.

Training reads a dataset over and over, each epoch every object once, in the same or in a new random order. When the
dataset is larger than the cache, least-recently-used throws each object away just before it is read again. The best
policy is to keep a fixed subset cached and let the rest pass through. Objects are evicted in this order:

1. Those of abandoned datasets, oldest use first. A dataset counts as abandoned when other datasets have been read for
   half as many bytes as it has in the cache.
2. Stale objects: not read for much longer than their dataset's objects take to be read again.
3. Transient objects: never read again since they were cached, newest first, so that they replace one another.
4. Last, the fixed subset: objects that have been read again, least recently used first.

Time is counted in bytes opened, not in seconds: a training that pauses loses nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

ABANDONED_SHARE = 0.5
"""A dataset is abandoned when others were read for this share of its cached bytes since its last use. Small enough that
a training which moves on finds space within its first epoch, large enough that a validation set read in between (about
a tenth of the training set, as a rule) does not push the training set out."""

STALE_FACTOR = 1.5
"""In random orders an object is read again after 0 to 2 epochs; the longest gap seen is near 2, and a gap of this much
more than the longest was never seen."""

STALE_UNKNOWN_FACTOR = 8
"""Where no object of a dataset was read again yet, they are stale after so many times the bytes that it has in the
cache."""

STALE_EPOCHS = 2
"""But not before so many epochs have passed, where the size of the dataset is known: in a cache of a tenth of it, the
fixed subset would otherwise be stale within the first epoch, before it can be read again."""

_EMPTY, _ABANDONED, _STALE, _TRANSIENT, _FIXED = range(5)
"""The order in which objects are evicted; files without a byte come first."""

UNUSED = _STALE
"""The last class of objects that are not expected to be read again."""
EVERYTHING = _FIXED

NEVER = -(1 << 62)
"""As the last use of a dataset: it counts as abandoned."""


class Amount(NamedTuple):
    """What is to be freed, or was freed: bytes, and files (each is one inode)."""

    count_bytes: int
    files: int = 0

    def covers(self, need: Amount) -> bool:
        """Whether it is at least as much, of both."""
        return self.count_bytes >= need.count_bytes and self.files >= need.files

    @property
    def is_none(self) -> bool:
        return self.count_bytes <= 0 and self.files <= 0

    def minus(self, other: Amount) -> Amount:
        return Amount(self.count_bytes - other.count_bytes, self.files - other.files)

    def plus(self, other: Amount) -> Amount:
        return Amount(self.count_bytes + other.count_bytes, self.files + other.files)


NO_AMOUNT = Amount(0)


class EvictionRow(NamedTuple):
    """What the policy knows of an object. Times are of the clock that counts bytes opened.

    ``gap`` is the time between the last two uses of the object, 0 if it was used once."""

    digest: str
    present_bytes: int
    dataset: int
    first_use: int
    last_use: int
    gap: int


@dataclass(slots=True)
class DatasetUse:
    """What the policy knows of a dataset: its bytes in the cache, its last use, the longest gap of an object, and its
    total size if that is known, else 0."""

    cached_bytes: int = 0
    last_use: int = 0
    longest_gap: int = 0
    total_bytes: int = 0


def uses_of(rows: Iterable[EvictionRow]) -> dict[int, DatasetUse]:
    """The datasets of these rows."""
    uses: dict[int, DatasetUse] = {}
    for row in rows:
        use = uses.setdefault(row.dataset, DatasetUse())
        use.cached_bytes += row.present_bytes
        use.last_use = max(use.last_use, row.last_use)
        use.longest_gap = max(use.longest_gap, row.gap)
    return uses


def choose_victims(
    rows: Iterable[EvictionRow],
    need_bytes: int,
    now: int,
    uses: Mapping[int, DatasetUse] | None = None,
    *,
    need_files: int = 0,
    reserved: Mapping[int, int] | None = None,
    pinned: Callable[[EvictionRow], bool] = lambda row: False,
    last_class: int = EVERYTHING,
) -> list[EvictionRow]:
    """The objects to evict so that at least ``need_bytes`` become free, and ``need_files`` inodes; or all that may be
    evicted if that is less.

    Rows of objects in use must not be given. ``now`` is the clock's present value. ``uses`` is ``uses_of`` all rows of
    the cache; with it the rows are iterated once and only candidates are kept in memory. ``reserved`` are bytes of
    datasets that have to stay. ``pinned`` is called only for rows that would be chosen.
    """
    need = Amount(need_bytes, need_files)
    if need.is_none:
        return []
    if uses is None:
        rows = list(rows)
        uses = uses_of(rows)
    first = _First(need, pinned)
    protected = {
        dataset: _First(Amount(uses[dataset].cached_bytes - count_bytes), pinned)
        for dataset, count_bytes in (reserved or {}).items()
        if dataset in uses and count_bytes > 0
    }
    for row in rows:
        rank = _rank(row, uses.get(row.dataset) or DatasetUse(row.present_bytes, row.last_use, row.gap), now)
        if rank[0] <= last_class:
            protected.get(row.dataset, first).offer(rank, row)
    for chosen in protected.values():
        for rank, row in chosen.within():
            first.offer(rank, row)
    return [row for _, row in first.rows()]


_Rank = tuple[int, int]


class _First:
    """The rows that come first in rank: as few as hold at least so many bytes, and are at least so many files."""

    def __init__(self, need: Amount, pinned: Callable[[EvictionRow], bool]) -> None:
        self._need_bytes, self._need_files = need
        self._pinned = pinned
        self._bytes = 0
        self._heap: list[tuple[int, int, EvictionRow]] = []
        """The last in rank is on top: it is the next to be replaced."""

    def offer(self, rank: _Rank, row: EvictionRow) -> None:
        """Takes the row if it is among the first so far."""
        entry = (-rank[0], -rank[1], row)
        enough = self._bytes >= self._need_bytes and len(self._heap) >= self._need_files
        if enough and (not self._heap or entry <= self._heap[0]):
            return
        if self._pinned(row):
            return
        heapq.heappush(self._heap, entry)
        self._bytes += row.present_bytes
        while self._heap and self._is_enough_without_last():
            self._bytes -= heapq.heappop(self._heap)[2].present_bytes

    def _is_enough_without_last(self) -> bool:
        rest_bytes = self._bytes - self._heap[0][2].present_bytes
        return rest_bytes >= self._need_bytes and len(self._heap) > self._need_files

    def rows(self) -> list[tuple[_Rank, EvictionRow]]:
        """In the order of eviction."""
        return [((-one, -two), row) for one, two, row in sorted(self._heap, reverse=True)]

    def within(self) -> list[tuple[_Rank, EvictionRow]]:
        """Without the last ones, so that they hold no more bytes than needed."""
        while self._heap and self._bytes > self._need_bytes:
            self._bytes -= heapq.heappop(self._heap)[2].present_bytes
        return self.rows()


def _rank(row: EvictionRow, dataset: DatasetUse, now: int) -> _Rank:
    if not row.present_bytes:
        return _EMPTY, row.last_use
    if now - dataset.last_use > ABANDONED_SHARE * dataset.cached_bytes:
        return _ABANDONED, row.last_use
    unknown = max(STALE_UNKNOWN_FACTOR * dataset.cached_bytes, STALE_EPOCHS * dataset.total_bytes)
    longest = STALE_FACTOR * dataset.longest_gap or unknown
    if now - row.last_use > longest:
        return _STALE, row.last_use
    if not row.gap:
        return _TRANSIENT, -row.first_use
    return _FIXED, row.last_use
