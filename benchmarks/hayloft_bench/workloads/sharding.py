"""Splits an epoch among ranks and readers: seeded shuffles without overlap. Pure functions.

A shuffle belongs to the epoch, not to a rank: all ranks draw the same order and take every n-th item of it, as torch's
DistributedSampler does, but without padding the last round, so that each sample is read exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy

from hayloft_bench.results.model import Sizes

Item = TypeVar("Item")


def shuffled(items: Sequence[Item], seed: int, epoch: int) -> list[Item]:
    """The items in the order of that epoch."""
    order = numpy.random.default_rng([seed, epoch]).permutation(len(items))
    return [items[number] for number in order.tolist()]


def split(items: Sequence[Item], readers: int, ranks: int, rank: int) -> list[list[Item]]:
    """The items of each reader of ``rank``. No part is empty: fewer items than readers give fewer parts."""
    parts = (list(items[rank * readers + reader :: ranks * readers]) for reader in range(readers))
    return [part for part in parts if part]


def scaled_count(full: int, least: int, scale: float) -> tuple[int, float]:
    """The number of files, and the factor by which each of them shrinks. Fewer than ``least`` files are not the same
    workload: below that the files get smaller, so that the bytes follow ``scale`` all the way down."""
    count = max(least, round(full * scale))
    return count, min(1.0, full * scale / count)


def readers_of(sizes: Sizes, default: int) -> int:
    """The requested number of readers, or the default; at least one."""
    return max(1, default if sizes.readers is None else sizes.readers)
