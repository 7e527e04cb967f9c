"""Who reads what in which epoch: seeded shuffles, dealt out without overlap. Functions of their arguments.

A shuffle belongs to the epoch, not to a rank: all ranks draw the same order and take every n-th item of it, as
torch's DistributedSampler does, but without filling up the last round, so that each sample is read exactly once.
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


def dealt(items: Sequence[Item], readers: int, ranks: int, rank: int) -> list[list[Item]]:
    """What each reader of ``rank`` gets. No share is empty: fewer items than readers give fewer shares."""
    hands = (list(items[rank * readers + reader :: ranks * readers]) for reader in range(readers))
    return [hand for hand in hands if hand]


def scaled_count(full: int, least: int, scale: float) -> tuple[int, float]:
    """How many files, and by what factor each of them shrinks. Fewer than ``least`` files are no workload any more:
    below that the files get smaller, so that the bytes follow ``scale`` all the way down."""
    count = max(least, round(full * scale))
    return count, min(1.0, full * scale / count)


def readers_of(sizes: Sizes, default: int) -> int:
    """As many as asked for; at least one."""
    return max(1, default if sizes.readers is None else sizes.readers)
