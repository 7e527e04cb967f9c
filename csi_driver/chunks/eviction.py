"""Which objects to let go of: a function of values.

Training reads a dataset over and over, each epoch every object once, in the same or in a new random order. When the
dataset is larger than the cache, least-recently-used throws each object away just before it is read again. The best
that can be done is to keep *some* subset still and let the rest pass by. So:

1. A dataset that nobody reads any more goes first, oldest use first. It counts as left when others have been read for
   half as many bytes as it has in the cache.
2. Then what is stale: not read for much longer than its dataset's objects take to come round.
3. Then what was never read again since it came, newest first: those who pass by make room for one another.
4. Last, what has been read again, least recently used first.

Time is counted in bytes opened, not in seconds: a training that pauses loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

LEFT_SHARE = 0.5
"""A dataset is left when the others were read for this share of its cached bytes since its last use. Small enough that
a training which moves on finds room within its first epoch, large enough that a validation set read in between (about
a tenth of the training set, as a rule) does not push the training set out."""

STALE_FACTOR = 1.5
"""In random orders an object comes round after 0 to 2 epochs; the longest seen is near 2, and this much more than the
longest has not been seen."""

STALE_UNKNOWN_FACTOR = 8
"""Where nothing of a dataset has come round yet, its objects are stale after so many times what it has in the cache."""


class EvictionRow(NamedTuple):
    """What the policy knows of an object. Times are of the clock that counts bytes opened.

    ``gap`` is how long the object last took to come round, 0 if it never did."""

    digest: str
    present_bytes: int
    dataset: int
    first_use: int
    last_use: int
    gap: int


@dataclass(slots=True)
class _Dataset:
    cached_bytes: int = 0
    last_use: int = 0
    longest_gap: int = 0


def choose_victims(rows: Iterable[EvictionRow], need_bytes: int, now: int) -> list[EvictionRow]:
    """The objects to drop so that at least ``need_bytes`` become free, or all of them if that is not enough.

    Rows of objects in use must not be given. ``now`` is the clock's present value.
    """
    candidates = [row for row in rows if row.present_bytes]
    datasets: dict[int, _Dataset] = {}
    for row in candidates:
        dataset = datasets.setdefault(row.dataset, _Dataset())
        dataset.cached_bytes += row.present_bytes
        dataset.last_use = max(dataset.last_use, row.last_use)
        dataset.longest_gap = max(dataset.longest_gap, row.gap)
    candidates.sort(key=lambda row: _rank(row, datasets[row.dataset], now))
    victims, freed = [], 0
    for row in candidates:
        if freed >= need_bytes:
            break
        victims.append(row)
        freed += row.present_bytes
    return victims


def _rank(row: EvictionRow, dataset: _Dataset, now: int) -> tuple[int, int]:
    if now - dataset.last_use > LEFT_SHARE * dataset.cached_bytes:
        return 0, row.last_use
    longest = STALE_FACTOR * dataset.longest_gap or STALE_UNKNOWN_FACTOR * dataset.cached_bytes
    if now - row.last_use > longest:
        return 1, row.last_use
    if not row.gap:
        return 2, -row.first_use
    return 3, row.last_use
