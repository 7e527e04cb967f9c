"""The goals of the data path, where nothing but plain reads is measured (``workloads/plain_reads.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from hayloft_bench.results.model import Phase


@dataclass(frozen=True, slots=True)
class Aim:
    """Hayloft's speed ÷ that of another target, at least."""

    workload: str
    phase: Phase
    other: str
    bound: float
    wording: str


_SEQUENTIAL = "0.75 of obstore alone, which writes the same ranges into a file"
_AHEAD = "ahead of the peers when cold"
_SMALL = "0.65 of plain GETs by obstore in 8 threads"
_TWICE = "twice as fast as the peers on small files"

AIMS = (
    Aim("long", "hot", "plain", 0.95, "0.95 of the plain file"),
    Aim("long", "cold", "obstore", 0.75, _SEQUENTIAL),
    Aim("long", "cold", "juicefs", 1.0, _AHEAD),
    Aim("long", "cold", "rclone", 1.0, _AHEAD),
    Aim("shards", "cold", "obstore", 0.75, _SEQUENTIAL),
    Aim("shards", "cold", "juicefs", 1.0, _AHEAD),
    Aim("shards", "cold", "rclone", 1.0, _AHEAD),
    Aim("small", "cold", "obstore", 0.65, _SMALL),
    Aim("small", "cold", "juicefs", 2.0, _TWICE),
    Aim("small", "cold", "rclone", 2.0, _TWICE),
    Aim("small", "hot", "juicefs", 2.0, _TWICE),
)
RAW = frozenset({"long", "shards", "small", "shared"})
"""Workloads that are judged by these aims instead of the goals of training."""
