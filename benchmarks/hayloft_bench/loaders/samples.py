"""The results that a loader passes to the trainer, and the trainer's loop."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from hayloft_bench.run.accelerator import Pace
from hayloft_bench.run.reader_pool import CHECK_EVERY, ReadCounts


class SampleRead(NamedTuple):
    """One read of a worker. Its bytes stay in the worker, as in MLPerf Storage's own emulation: a real worker would
    send a decoded tensor, and its size has nothing to do with storage."""

    latency_s: float
    read_bytes: int
    samples: int = 1
    checksum: tuple[str, int, int, int] | None = None
    """(path, offset, length, CRC32C) if this sample is compared."""
    wrong: str | None = None
    """The error that a comparison in the worker found; empty: the bytes are right; None: no comparison."""


Batch = list[SampleRead]


def is_checked(number: int) -> bool:
    """Whether the sample with that number in its share is compared: one of ``CHECK_EVERY``, beginning with the first.
    The shares are shuffled, so each epoch compares others."""
    return number % CHECK_EVERY == 0


def train(batches: Iterable[Batch], counts: ReadCounts, arguments: dict[str, Any]) -> None:
    """The trainer's loop: waits for a batch, counts it, and sleeps for its compute time if an accelerator is emulated.
    The latency of a batch is that wait; for the first one it includes the start of the loader's workers."""
    pace = Pace.of(arguments)
    begun = time.perf_counter()
    for batch in batches:
        counts.batch(time.perf_counter() - begun)
        computing = time.perf_counter()
        for read in batch:
            counts.sample(read.latency_s, read.read_bytes, read.samples)
            if read.checksum is not None:
                counts.checksum(*read.checksum)
            if read.wrong is not None:
                counts.checked(not read.wrong, read.wrong)
        pace.compute(sum(read.samples for read in batch), since=computing)
        begun = time.perf_counter()
