"""Whether the disk has space for a workload: decided before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hayloft_bench.targets.base import TargetBase

SPARE_BYTES = 2 << 30
"""1 GiB that Hayloft's cache always leaves free, and as much for the store's own files and logs."""
OVERHEAD = 1.05
"""Blocks and metadata of file systems, above the bytes of the files."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """The targets that the disk has space for. ``reason``: why not even the dataset fits; empty if it does."""

    kept: tuple[str, ...]
    dropped: dict[str, str]
    reason: str = ""


def fitting(free_bytes: int, dataset_bytes: int, targets: Sequence[type[TargetBase]]) -> Fitting:
    """The plain files and the store's copy come first, then the targets in their order, as long as there is space: a
    target's cache stays on the disk while the others are measured."""
    one_bytes = dataset_bytes * OVERHEAD
    needed_bytes = _without_targets(dataset_bytes)
    if needed_bytes > free_bytes:
        return Fitting((), {}, f"not enough disk: {_shortage(free_bytes, needed_bytes)}")
    kept, dropped = [], {}
    for target in targets:
        with_it = needed_bytes + target.copies * one_bytes
        if with_it <= free_bytes:
            kept.append(target.name)
            needed_bytes = with_it
        else:
            dropped[target.name] = f"not enough disk for it beside the others: {_shortage(free_bytes, with_it)}"
    return Fitting(tuple(kept), dropped)


def wanted_bytes(dataset_bytes: int, targets: Sequence[type[TargetBase]]) -> int:
    """The free space with which ``fitting`` drops no target."""
    copies = sum(target.copies for target in targets)
    return math.ceil(_without_targets(dataset_bytes) + copies * dataset_bytes * OVERHEAD)


def _without_targets(dataset_bytes: int) -> float:
    return SPARE_BYTES + 2 * dataset_bytes * OVERHEAD


def _shortage(free_bytes: float, needed_bytes: float) -> str:
    return (
        f"{free_bytes / 1e9:.1f} GB are free and {needed_bytes / 1e9:.1f} GB are needed; name another --directory, "
        "a smaller --scale or fewer --targets"
    )
