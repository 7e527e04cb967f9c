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
    "metrics": "4,000 requests to the metrics port that are never completed; those that it closes are made again",
    "shares": "1,000 open files, 6 mounts with 200,000 objects each, a reservation of the complete cache",
    "all": "all of these at the same time",
}
"""By name: what the attacker does at scale 1 or more."""

Part = Literal["small", "large", "mount"]
"""Of the victim's dataset. ``mount``: not read; the row has the slowest of a few mounts and unmounts."""
READ_PARTS: tuple[Part, ...] = ("small", "large")

MOST_TIMES_ALONE = 2.0
MOST_MOUNT_S = 5.0

Verdict = Literal["holds", "machine", "misses"]
"""``machine``: reads exceed their bound, and all that do are within the same multiple of the same reads of a daemon
that is not attacked: the cause is what the attacker's programs take of the machine, not the driver."""


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
    times_control: dict[tuple[str, str], float]
    """The median over the repetitions of p99 ÷ p99 of the same reads from the daemon that is not attacked."""
    mount_s: Figure | None
    unmount_s: Figure | None
    calls_per_s: float | None
    requests_per_s: float | None

    @property
    def verdict(self) -> Verdict | None:
        """None for the victim alone, or where a figure is missing."""
        expected = len(READ_PARTS) * 2
        if self.attack == ALONE or len(self.times_alone) < expected or self.mount_s is None:
            return None
        if self.unmount_s is None or any(figure.at_least for figure in self.p99_s.values()):
            return "misses"
        if max(self.mount_s.value, self.unmount_s.value) > MOST_MOUNT_S:
            return "misses"
        exceeding = [key for key, times in self.times_alone.items() if times > MOST_TIMES_ALONE]
        if not exceeding:
            return "holds"
        by_control = (self.times_control.get(key, self.times_alone[key]) for key in exceeding)
        return "machine" if max(by_control) <= MOST_TIMES_ALONE else "misses"


def is_of_tenants(row: Measurement) -> bool:
    return bool(row.attack)


def tenant_cases(results: Results) -> list[Case]:
    """In the order in which they were measured; empty if the workload was not run."""
    rows = [row for row in results.measurements if is_of_tenants(row)]
    alone = _p99(row for row in rows if row.attack == ALONE and not row.control)
    found = []
    for attack in dict.fromkeys(row.attack for row in rows):
        mine = [row for row in rows if row.attack == attack]
        p99_s = _p99(row for row in mine if not row.control)
        times = {key: figure.value / alone[key].value for key, figure in p99_s.items() if key in alone}
        mounts = [row for row in mine if row.part == "mount"]
        rates = [_median(mounts, name) for name in ("attack_calls_per_s", "attack_requests_per_s")]
        found.append(
            Case(
                attack,
                p99_s,
                times,
                _times_control(mine),
                _median(mounts, "mount_s"),
                _median(mounts, "unmount_s"),
                *(None if rate is None else rate.value for rate in rates),
            )
        )
    return found


def _p99(rows: Iterable[Measurement]) -> dict[tuple[str, str], Figure]:
    grouped: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        if row.part in READ_PARTS:
            grouped.setdefault((row.part, row.phase), []).append(row)
    figures = {key: _median(some, "sample_p99_s") for key, some in grouped.items()}
    return {key: figure for key, figure in figures.items() if figure is not None}


def _times_control(rows: Iterable[Measurement]) -> dict[tuple[str, str], float]:
    """Pairs are of one repetition: the machine may have been busier in another one."""
    pairs: dict[tuple[str, str, int], dict[bool, float]] = {}
    for row in rows:
        if row.part in READ_PARTS and row.sample_p99_s is not None:
            pairs.setdefault((row.part, row.phase, row.repetition), {})[row.control] = row.sample_p99_s
    times: dict[tuple[str, str], list[float]] = {}
    for (part, phase, _), pair in pairs.items():
        if len(pair) == 2 and pair[True] > 0.0:
            times.setdefault((part, phase), []).append(pair[False] / pair[True])
    return {key: statistics.median(values) for key, values in times.items()}


def _median(rows: list[Measurement], measure: str) -> Figure | None:
    values = [value for row in rows if (value := getattr(row, measure)) is not None]
    return Figure(statistics.median(values), not all(row.valid for row in rows)) if values else None
