"""Windows of memory-mapped files, copied out of the map by the workers of a DataLoader.

The latency of a sample is that of the copy with its page faults: a copy that waits for the disk or the store takes
orders of magnitude longer than one whose pages are in memory. The latency of a batch is the trainer's wait for it.
"""

from __future__ import annotations

import time
from typing import Any

import crc32c
import numpy

from hayloft_bench.loaders.data_loader import load as load_batches
from hayloft_bench.loaders.data_loader import prepare
from hayloft_bench.loaders.samples import SampleRead, is_checked, train
from hayloft_bench.run.reader_pool import ReadCounts, Run

TOKEN_BYTES = 2


class TokenWindows:
    """``items`` are (path, offset, length), in bytes. ``open`` maps the files, in the process that reads."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._items: list[tuple[str, int, int]] = arguments["items"]
        self._root: str = arguments["access"]["root"]
        self._maps: dict[str, Any] = {}

    def open(self) -> None:
        for path in sorted({path for path, _, _ in self._items}):
            self._maps[path] = numpy.memmap(f"{self._root}/{path}", dtype=numpy.uint16, mode="r")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> SampleRead:
        path, offset, length = self._items[number]
        start = time.perf_counter()
        window = numpy.array(self._maps[path][offset // TOKEN_BYTES : (offset + length) // TOKEN_BYTES])
        latency_s = time.perf_counter() - start
        if window.nbytes != length:
            return SampleRead(
                latency_s, window.nbytes, wrong=f"{path}: {window.nbytes} bytes at {offset}, not {length}"
            )
        checksum = (path, offset, length, crc32c.crc32c(window.data)) if is_checked(number) else None
        return SampleRead(latency_s, length, checksum=checksum)


def load(arguments: dict[str, Any]) -> Run:
    windows = TokenWindows(arguments)
    prepare(arguments)

    def run(counts: ReadCounts) -> None:
        train(load_batches(windows, arguments), counts, arguments)

    return run
