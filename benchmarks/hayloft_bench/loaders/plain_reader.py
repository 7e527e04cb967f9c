"""Readers without a loader: they measure the data path alone.

From a directory: a buffered ``open``, as of ``PIL.Image.open``, ``read`` by 1 MiB into one buffer, ``close``. From
obstore: one process with as many threads as Hayloft or its readers would have: what obstore alone can do on the same
machine. The latency of a sample is that of a file, or of the range that ends it; there are no batches.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.run.reader_pool import ReadCounts, Run

BUFFER_BYTES = 1 << 20
"""The buffer of common readers, and the largest request that the kernel sends to a FUSE server."""
RANGE_BYTES = 8 << 20
"""The longest fetch of Hayloft's sequential reader: obstore alone reads the same ranges."""
RANGE_THREADS = 16
"""Hayloft's own default number of fetching threads."""
GET_THREADS = 8
RANGES_DIRECTORY = "/var/tmp"  # noqa: S108 - files without a name


def load(arguments: dict[str, Any]) -> Run:
    """``items`` are (path, size in bytes). With a client, the first reader reads the items of all (``all``)."""
    if arguments["access"]["kind"] == "directory":
        return files(arguments)
    return ranges(arguments) if arguments["ranges"] else gets(arguments)


def files(arguments: dict[str, Any]) -> Run:
    """Complete files, one after the other. Of one in 32, the last piece is compared."""
    root, items = arguments["access"]["root"], arguments["items"]

    def run(counts: ReadCounts) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        for path, _ in items:
            start, total, last = time.perf_counter(), 0, 0
            with open(f"{root}/{path}", "rb") as file:
                while count := file.readinto1(buffer):
                    total, last = total + count, count
            counts.sample(time.perf_counter() - start, total)
            if counts.wants_check():
                counts.check(path, total - last, buffer[:last])

    return run


def ranges(arguments: dict[str, Any]) -> Run:
    """Ranges of objects, written into files on the disk, as a cache has to."""
    source = make_source(arguments["access"])
    source.open()

    def run(counts: ReadCounts) -> None:
        items = arguments["all"]
        written = {path: tempfile.TemporaryFile(dir=RANGES_DIRECTORY) for path, _ in items}  # noqa: SIM115 - closed below

        def fetch(item: tuple[str, int, int]) -> int:
            path, start, stop = item
            data = source.read_range(path, start, stop)
            os.pwrite(written[path].fileno(), data, start)
            return len(data)

        parts = [
            (path, start, min(start + RANGE_BYTES, size_bytes))
            for path, size_bytes in items
            for start in range(0, size_bytes, RANGE_BYTES)
        ]
        ends = dict(items)
        for (path, _, stop), latency_s, count in _in_threads(RANGE_THREADS, fetch, parts):
            counts.sample(latency_s, count, samples=int(stop == ends[path]))
        for file in written.values():
            file.close()

    return run


def gets(arguments: dict[str, Any]) -> Run:
    """Complete objects, into memory."""
    source = make_source(arguments["access"])
    source.open()

    def run(counts: ReadCounts) -> None:
        paths = [path for path, _ in arguments["all"]]
        for _, latency_s, data in _in_threads(GET_THREADS, source.read, paths):
            counts.sample(latency_s, len(data))

    return run


def _in_threads(count: int, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[tuple[Any, float, Any]]:
    """(item, seconds, result of the work), in the order of the items."""

    def timed(item: Any) -> tuple[Any, float, Any]:
        start = time.perf_counter()
        result = work(item)
        return item, time.perf_counter() - start, result

    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(timed, items)
