"""What a loader hands to the trainer, and the trainer's loop."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from hayloft_bench.run.accelerator import Pace
from hayloft_bench.run.reader_pool import CHECK_EVERY, ReadCounts


class Read(NamedTuple):
    """Something that a worker has read. Its bytes stay in the worker, as in MLPerf Storage's own emulation: what a
    real worker would send on is a decoded tensor, whose size has nothing to do with storage."""

    latency_s: float
    read_bytes: int
    samples: int = 1
    checksum: tuple[str, int, int, int] | None = None
    """(path, offset, length, CRC32C) if this one is compared."""
    wrong: str | None = None
    """What a comparison in the worker has found; empty if it found nothing, None if there was none."""


Batch = list[Read]


def is_checked(number: int) -> bool:
    """Whether the sample with that number in its share is compared: the first, and then one of ``CHECK_EVERY``. The
    shares are shuffled, so that these are others in every epoch."""
    return number % CHECK_EVERY == 0


def train(batches: Iterable[Batch], tally: ReadCounts, arguments: dict[str, Any]) -> None:
    """The trainer's loop: waits for a batch, counts it, and computes where an accelerator is emulated. The latency of
    a batch is that wait, and for the first one the start of the loader's workers, too."""
    pace = Pace.of(arguments)
    begun = time.perf_counter()
    for batch in batches:
        tally.batch(time.perf_counter() - begun)
        computing = time.perf_counter()
        for read in batch:
            tally.sample(read.latency_s, read.read_bytes, read.samples)
            if read.checksum is not None:
                tally.checksum(*read.checksum)
            if read.wrong is not None:
                tally.checked(not read.wrong, read.wrong)
        pace.compute(sum(read.samples for read in batch), since=computing)
        begun = time.perf_counter()
