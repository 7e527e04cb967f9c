"""What is measured, and how the figures become ratios. Values only; ``compare.py`` does it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

RANGE_BYTES = 8 << 20
"""The longest fetch of Hayloft's sequential reader: obstore alone reads the same ranges."""
RANGE_THREADS = 16
"""Hayloft's own default number of fetching threads."""
GET_THREADS = 8

PLAIN, OBSTORE, HAYLOFT, JUICEFS, RCLONE = "plain", "obstore", "hayloft", "juicefs", "rclone"
TARGETS = (PLAIN, OBSTORE, HAYLOFT, JUICEFS, RCLONE)


@dataclass(frozen=True)
class Case:
    """One workload. ``split``: the readers share the files out; otherwise each of them reads all. ``passes``: how often
    they read them in one measurement, so that it takes long enough to be measured."""

    name: str
    title: str
    folders: tuple[str, ...]
    readers: int
    state: Literal["cold", "warm"]
    targets: tuple[str, ...]
    split: bool = True
    passes: int = 1

    @property
    def rounds(self) -> int:
        """Measurements per run. Warm ones are short, and taken in turns with the others."""
        return 3 if self.state == "warm" else 1


CASES = {
    case.name: case
    for case in (
        Case(
            "warm-long",
            "one long file, warm, 1 reader",
            ("long",),
            1,
            "warm",
            (PLAIN, HAYLOFT, JUICEFS, RCLONE),
            passes=6,
        ),
        Case("cold-long", "one long file, cold, 1 reader", ("long",), 1, "cold", (OBSTORE, HAYLOFT, JUICEFS, RCLONE)),
        Case("cold-shards", "4 shards, cold, 4 readers", ("shards",), 4, "cold", (OBSTORE, HAYLOFT, JUICEFS, RCLONE)),
        Case("once-1", "one cold epoch, 1 reader", ("shards", "small"), 1, "cold", (HAYLOFT,), split=False),
        Case(
            "once-8", "one cold epoch, 8 readers of the same files", ("shards", "small"), 8, "cold", (HAYLOFT,), False
        ),
        Case("cold-small", "small files, cold, 8 readers", ("small",), 8, "cold", (OBSTORE, HAYLOFT, JUICEFS, RCLONE)),
        Case(
            "warm-small",
            "small files, warm, 2 readers",
            ("small",),
            2,
            "warm",
            (PLAIN, HAYLOFT, JUICEFS, RCLONE),
            passes=6,
        ),
    )
}


@dataclass(frozen=True)
class Figure:
    """One measurement. ``origin_bytes`` were sent by the store meanwhile, by the store's own counter."""

    case: str
    target: str
    run: int
    dataset_bytes: int
    bytes: int
    samples: int
    seconds: float
    p50_ms: float
    p99_ms: float
    origin_bytes: int

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds


@dataclass(frozen=True)
class Aim:
    """Hayloft against another in one case; ``other`` None: bytes from the store ÷ bytes of the dataset."""

    case: str
    other: str | None
    bound: float
    at_least: bool = True

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def wording(self) -> str:
        against = f"÷ {self.other}" if self.other else "bytes from the store ÷ dataset"
        return f"{CASES[self.case].title}: {against}"


AIMS = (
    Aim("warm-long", PLAIN, 0.95),
    Aim("cold-long", OBSTORE, 0.75),
    Aim("cold-long", JUICEFS, 1.0),
    Aim("cold-long", RCLONE, 1.0),
    Aim("cold-shards", OBSTORE, 0.75),
    Aim("cold-shards", JUICEFS, 1.0),
    Aim("cold-shards", RCLONE, 1.0),
    Aim("once-1", None, 1.02, at_least=False),
    Aim("once-8", None, 1.02, at_least=False),
    Aim("cold-small", OBSTORE, 0.65),
    Aim("cold-small", JUICEFS, 2.0),
    Aim("cold-small", RCLONE, 2.0),
    Aim("warm-small", JUICEFS, 2.0),
)


def ratios(figures: Iterable[Figure], aim: Aim) -> list[float]:
    """One per run: both were measured within it, one after the other, so a slow minute of the machine hits both."""
    of = {(figure.target, figure.run): figure for figure in figures if figure.case == aim.case}
    runs = sorted(run for target, run in of if target == HAYLOFT)
    if aim.other is None:
        return [of[HAYLOFT, run].origin_bytes / of[HAYLOFT, run].dataset_bytes for run in runs]
    pairs = [(of[HAYLOFT, run], of[aim.other, run]) for run in runs if (aim.other, run) in of]
    return [ours.bytes_per_s / theirs.bytes_per_s for ours, theirs in pairs]


def median(values: Iterable[float]) -> float:
    """Of at least one value."""
    return statistics.median(values)
