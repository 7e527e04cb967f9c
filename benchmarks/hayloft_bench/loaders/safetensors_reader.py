"""Shards of a checkpoint: in a directory by the safetensors library, from a store by ranged GETs in parallel.

One sample is one tensor; its latency ends when the reader has a private copy. One batch is one shard, from opening it
to its last tensor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.loaders.safetensors_layout import LENGTH_BYTES, Tensor, header_bytes, tensors
from hayloft_bench.run.reader_pool import ReadCounts, Run

RANGE_BYTES = 16 << 20
RANGE_THREADS = 8
"""Per reader; with four readers 32 GETs in flight."""


class CheckpointReader:
    """``items`` are (path, size in bytes)."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from safetensors import safe_open

        self._safe_open: Any = safe_open
        access = arguments["access"]
        self._items: list[tuple[str, int]] = arguments["items"]
        self._root: str | None = access["root"] if access["kind"] == "directory" else None
        self._source = make_source(access, [path for path, _ in self._items])
        self._header_bytes = 0
        """Of the shard that is being read."""

    def read(self, counts: ReadCounts) -> None:
        self._source.open()
        with ThreadPoolExecutor(RANGE_THREADS) as pool:
            for path, size_bytes in self._items:
                begun = start = time.perf_counter()
                read_bytes = 0
                for tensor, data in self._mapped(path) if self._root else self._fetched(path, pool):
                    read_bytes += len(data)
                    counts.sample(time.perf_counter() - start, len(data))
                    if counts.wants_check():
                        counts.check(path, tensor.start, data)
                    start = time.perf_counter()
                counts.batch(time.perf_counter() - begun)
                counts.checked(self._header_bytes + read_bytes == size_bytes, f"{path} is not {size_bytes} bytes long")

    def _mapped(self, path: str) -> Iterator[tuple[Tensor, memoryview]]:
        """The library maps the file and copies each tensor out of the map when it is requested."""
        where = f"{self._root}/{path}"
        with open(where, "rb") as file:
            head = file.read(LENGTH_BYTES)
            head += file.read(header_bytes(head) - LENGTH_BYTES)
        self._header_bytes = len(head)
        with self._safe_open(where, framework="numpy") as shard:
            for tensor in tensors(head):
                yield tensor, memoryview(shard.get_tensor(tensor.name)).cast("B")

    def _fetched(self, path: str, pool: ThreadPoolExecutor) -> Iterator[tuple[Tensor, memoryview]]:
        """The header first, then all ranges; ``RANGE_THREADS`` of them are in flight at a time."""
        self._header_bytes = header_bytes(bytes(self._source.read_range(path, 0, LENGTH_BYTES)))
        found = tensors(bytes(self._source.read_range(path, 0, self._header_bytes)))
        in_flight: list[tuple[Tensor, bytearray, list[Future[None]]]] = []
        for tensor in found:
            data = bytearray(tensor.stop - tensor.start)
            starts = range(tensor.start, tensor.stop, RANGE_BYTES)
            fetches = [pool.submit(self._fetch, path, tensor, data, start) for start in starts]
            in_flight.append((tensor, data, fetches))
        for tensor, data, fetches in in_flight:
            for fetch in fetches:
                fetch.result()
            yield tensor, memoryview(data)

    def _fetch(self, path: str, tensor: Tensor, data: bytearray, start: int) -> None:
        stop = min(start + RANGE_BYTES, tensor.stop)
        body = self._source.read_range(path, start, stop)
        if len(body) != stop - start:
            raise OSError(f"{path}: {len(body)} bytes instead of {stop - start} at {start}")
        data[start - tensor.start : stop - tensor.start] = body


def load(arguments: dict[str, Any]) -> Run:
    return CheckpointReader(arguments).read
