"""Windows of memory-mapped files, copied out of the map by the workers of a DataLoader.

The latency of a sample is that of the copy, page faults and all: between one that finds its pages and one that waits
for the disk or the store there are orders of magnitude. That of a batch is how long the trainer waited for it.
"""

from __future__ import annotations

import time
from typing import Any

import crc32c
import numpy

from hayloft_bench.loaders.loading import load as load_batches
from hayloft_bench.loaders.loading import prepare
from hayloft_bench.loaders.samples import Read, is_checked, train
from hayloft_bench.run.reader_pool import ReadCounts, Run

TOKEN_BYTES = 2


class Windows:
    """``items`` are (path, offset, length), in bytes. The files are mapped by whoever reads."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._items: list[tuple[str, int, int]] = arguments["items"]
        self._root: str = arguments["access"]["root"]
        self._maps: dict[str, Any] = {}

    def open(self) -> None:
        for path in sorted({path for path, _, _ in self._items}):
            self._maps[path] = numpy.memmap(f"{self._root}/{path}", dtype=numpy.uint16, mode="r")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> Read:
        path, offset, length = self._items[number]
        start = time.perf_counter()
        window = numpy.array(self._maps[path][offset // TOKEN_BYTES : (offset + length) // TOKEN_BYTES])
        latency_s = time.perf_counter() - start
        if window.nbytes != length:
            return Read(latency_s, window.nbytes, wrong=f"{path}: {window.nbytes} bytes at {offset}, not {length}")
        checksum = (path, offset, length, crc32c.crc32c(window.data)) if is_checked(number) else None
        return Read(latency_s, length, checksum=checksum)


def load(arguments: dict[str, Any]) -> Run:
    """The job."""
    windows = Windows(arguments)

    prepare(arguments)

    def run(tally: ReadCounts) -> None:
        train(load_batches(windows, arguments), tally, arguments)

    return run
