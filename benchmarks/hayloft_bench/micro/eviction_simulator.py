"""Runs an eviction policy over a trace of reads: the driver's own code of the policy, without disk and objects."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping

from csi_driver.cache.eviction import EvictionRow, choose_victims, uses_of
from csi_driver.cache.index import SAME_PASS_BYTES

Policy = Callable[[Iterable[EvictionRow], int, int], list[EvictionRow]]
"""Rows, bytes needed, the clock."""
TraceRead = tuple[int, int, int]
"""Dataset, number of the object, size in bytes."""


def least_recently_used(rows: Iterable[EvictionRow], need_bytes: int, now: int) -> list[EvictionRow]:
    return _until(sorted(rows, key=lambda row: row.last_use), need_bytes)


def first_in_first_out(rows: Iterable[EvictionRow], need_bytes: int, now: int) -> list[EvictionRow]:
    return _until(sorted(rows, key=lambda row: row.first_use), need_bytes)


def at_random(rows: Iterable[EvictionRow], need_bytes: int, now: int) -> list[EvictionRow]:
    shuffled = list(rows)
    random.Random(now).shuffle(shuffled)
    return _until(shuffled, need_bytes)


def knowing(dataset_bytes: Mapping[int, int]) -> Policy:
    """Hayloft's policy as the daemon calls it: with the sizes of the mounted datasets."""

    def choose(rows: Iterable[EvictionRow], need_bytes: int, now: int) -> list[EvictionRow]:
        rows = list(rows)
        uses = uses_of(rows)
        for dataset, use in uses.items():
            use.total_bytes = dataset_bytes.get(dataset, 0)
        return choose_victims(rows, need_bytes, now, uses)

    return choose


POLICIES: dict[str, Policy] = {
    "hayloft": choose_victims,
    "lru": least_recently_used,
    "fifo": first_in_first_out,
    "random": at_random,
}


def _until(rows: list[EvictionRow], need_bytes: int) -> list[EvictionRow]:
    victims, freed = [], 0
    for row in rows:
        if freed >= need_bytes:
            break
        victims.append(row)
        freed += row.present_bytes
    return victims


class SimulatedCache:
    """Holds rows as the index of the cache does. ``evict_share`` is the part of the limit that is freed at once."""

    def __init__(self, policy: Policy, limit_bytes: int, evict_share: float = 0.02) -> None:
        self._policy, self._limit_bytes, self._evict_bytes = policy, limit_bytes, int(limit_bytes * evict_share)
        self.rows: dict[str, EvictionRow] = {}
        self._used_bytes = self._now = 0

    def read(self, read: TraceRead) -> bool:
        """True: a hit."""
        dataset, number, size_bytes = read
        key = f"{dataset}/{number}"
        self._now += size_bytes
        row = self.rows.get(key)
        if row is not None:
            distance = self._now - row.last_use
            gap = distance if distance > SAME_PASS_BYTES else row.gap
            self.rows[key] = row._replace(last_use=self._now, gap=gap)
            return True
        if self._used_bytes + size_bytes > self._limit_bytes:
            need = max(self._used_bytes + size_bytes - self._limit_bytes, self._evict_bytes)
            for victim in self._policy(self.rows.values(), need, self._now):
                del self.rows[victim.digest]
                self._used_bytes -= victim.present_bytes
        self.rows[key] = EvictionRow(key, size_bytes, dataset, self._now, self._now, 0)
        self._used_bytes += size_bytes
        return False


def epoch(dataset: int, objects: int, size_bytes: int, shuffle_seed: int | None = None) -> Iterator[TraceRead]:
    """One epoch: every object once, in order or shuffled."""
    order = list(range(objects))
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(order)
    return ((dataset, number, size_bytes) for number in order)


def hit_ratio(cache: SimulatedCache, reads: Iterable[TraceRead]) -> float:
    """The share of the reads that hit, by number."""
    hits = [cache.read(read) for read in reads]
    return sum(hits) / len(hits)
