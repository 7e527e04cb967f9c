"""One sample is one complete file, read by a worker of a DataLoader.

The latency of a sample is that of the worker: open, read to the end, close (or one GET). The latency of a batch is how
long the trainer waited for it.
"""

from __future__ import annotations

import io
import time
from typing import Any

import crc32c
import numpy

from hayloft_bench.loaders.data_loader import load as load_batches
from hayloft_bench.loaders.data_loader import prepare
from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.loaders.npy import header
from hayloft_bench.loaders.samples import SampleRead, is_checked, train
from hayloft_bench.run.reader_pool import ReadCounts, Run


class FileSamples:
    """``items`` are (path, size in bytes)."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._items: list[tuple[str, int]] = arguments["items"]
        self._source = make_source(arguments["access"], [path for path, _ in self._items])

    def open(self) -> None:
        self._source.open()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> SampleRead:
        path, size_bytes = self._items[number]
        start = time.perf_counter()
        data = self._source.read(path)
        latency_s = time.perf_counter() - start
        return _read(number, path, size_bytes, data, 0, latency_s)


class ArraySamples(FileSamples):
    """The same with ``numpy.load``, which reads into a new array."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        access = arguments["access"]
        self._root = access["root"] if access["kind"] == "directory" else None

    def __getitem__(self, number: int) -> SampleRead:
        path, size_bytes = self._items[number]
        start = time.perf_counter()
        where = io.BytesIO(self._source.read(path)) if self._root is None else f"{self._root}/{path}"
        array = numpy.load(where)
        latency_s = time.perf_counter() - start
        head = header(size_bytes)
        # numpy.load has consumed the header; an array of this length can only have had this one.
        return _read(number, path, size_bytes, array.data, len(head), latency_s, crc32c.crc32c(head))


def _read(
    number: int, path: str, size_bytes: int, data: Any, before_bytes: int, latency_s: float, before_crc: int = 0
) -> SampleRead:
    read_bytes = before_bytes + len(data)
    if read_bytes != size_bytes:
        return SampleRead(latency_s, read_bytes, wrong=f"{path}: {read_bytes} bytes instead of {size_bytes}")
    if not is_checked(number):
        return SampleRead(latency_s, read_bytes)
    return SampleRead(latency_s, read_bytes, checksum=(path, 0, read_bytes, crc32c.crc32c(data, before_crc)))


_FORMS = {"raw": FileSamples, "npy": ArraySamples}


def load(arguments: dict[str, Any]) -> Run:
    files = _FORMS[arguments["form"]](arguments)
    prepare(arguments)

    def run(counts: ReadCounts) -> None:
        train(load_batches(files, arguments), counts, arguments)

    return run
