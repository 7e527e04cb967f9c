"""The rows of the workload ``tenants``: what each attack does to another tenant's reads and mounts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hayloft_bench.results.model import Measurement, Results

ALONE = "alone"
ATTACKS: dict[str, str] = {
    "globs": "four globs with several **/ over keys of 480 parts",
    "listings": "70 listings that never end, send a byte at a time, or are a gigabyte in a megabyte of gzip",
    "hanging": "20 volumes of a store that answers no GET, with 10 readers each",
    "metrics": "4,000 requests to the metrics port that are never completed",
    "shares": "1,000 open files, 6 mounts with 200,000 objects each, a reservation of the complete cache",
    "all": "all of these at the same time",
}
"""By name: what the attacker does at scale 1 or more."""

Part = Literal["small", "large", "mount"]
"""Of the victim's dataset. ``mount``: not read; the row has the slowest of a few mounts and unmounts."""
READ_PARTS: tuple[Part, ...] = ("small", "large")

MOST_TIMES_ALONE = 2.0
MOST_MOUNT_S = 5.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A median over the repetitions."""

    value: float
    at_least: bool
    """Whether a measurement was ended before the reads, the mount or the unmount had ended."""


@dataclass(frozen=True, slots=True)
class Case:
    """One attack. None: not measured."""

    attack: str
    p99_s: dict[tuple[str, str], Figure]
    """By part and phase."""
    times_alone: dict[tuple[str, str], float]
    mount_s: Figure | None
    unmount_s: Figure | None

    @property
    def holds(self) -> bool | None:
        """Whether everything is within the bounds; None for the victim alone, or where a figure is missing."""
        expected = len(READ_PARTS) * 2
        if self.attack == ALONE or len(self.times_alone) < expected or self.mount_s is None:
            return None
        if self.unmount_s is None or any(figure.at_least for figure in self.p99_s.values()):
            return False
        slowest_s = max(self.mount_s.value, self.unmount_s.value)
        return max(self.times_alone.values()) <= MOST_TIMES_ALONE and slowest_s <= MOST_MOUNT_S


def is_of_tenants(row: Measurement) -> bool:
    return bool(row.attack)


def tenant_cases(results: Results) -> list[Case]:
    """In the order in which they were measured; empty if the workload was not run."""
    rows = [row for row in results.measurements if is_of_tenants(row)]
    alone = _p99(row for row in rows if row.attack == ALONE)
    found = []
    for attack in dict.fromkeys(row.attack for row in rows):
        mine = [row for row in rows if row.attack == attack]
        p99_s = _p99(mine)
        times = {key: figure.value / alone[key].value for key, figure in p99_s.items() if key in alone}
        mounts = [row for row in mine if row.part == "mount"]
        found.append(Case(attack, p99_s, times, _median(mounts, "mount_s"), _median(mounts, "unmount_s")))
    return found


def _p99(rows: Iterable[Measurement]) -> dict[tuple[str, str], Figure]:
    grouped: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        if row.part in READ_PARTS:
            grouped.setdefault((row.part, row.phase), []).append(row)
    figures = {key: _median(some, "sample_p99_s") for key, some in grouped.items()}
    return {key: figure for key, figure in figures.items() if figure is not None}


def _median(rows: list[Measurement], measure: str) -> Figure | None:
    values = [value for row in rows if (value := getattr(row, measure)) is not None]
    return Figure(statistics.median(values), not all(row.valid for row in rows)) if values else None
