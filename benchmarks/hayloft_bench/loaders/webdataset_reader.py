"""Tar shards through the webdataset library: shard list, opener, tar expander, grouping by key, shuffle buffer.

The latency of a sample is the time between two samples of a worker's pipeline, before the shuffle buffer: reading it
from the shard and unpacking it. The latency of a batch is how long the trainer waited for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import crc32c

from hayloft_bench.loaders.data_loader import part_of, prepare, stream
from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.loaders.samples import Batch, SampleRead, is_checked, train
from hayloft_bench.loaders.shard_layout import RECORD_BYTES, STRIDE_BYTES, image_offset
from hayloft_bench.run.reader_pool import ReadCounts, Run

SHUFFLE_SAMPLES = 100
"""In the buffer of each worker; the webdataset documentation uses 100 to 1,000 where shards are shuffled already."""


class TarShardStream:
    """``items`` are paths of shards, in the order of the epoch."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        import webdataset

        self._library: Any = webdataset
        self._arguments = arguments
        self._is_directory = arguments["access"]["kind"] == "directory"
        self._source = make_source(arguments["access"], arguments["items"])

    def open(self) -> None:
        self._source.open()

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        paths, size = part_of(self._arguments["items"], worker, workers), self._arguments["batch"]
        shuffle = self._library.shuffle(
            SHUFFLE_SAMPLES, initial=SHUFFLE_SAMPLES, rng=random.Random(self._arguments["seed"])
        )
        batch: Batch = []
        for read in shuffle(self._reads(paths)):
            batch.append(read)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _reads(self, paths: list[str]) -> Iterator[SampleRead]:
        expand = self._library.tariterators.tar_file_expander
        samples = self._library.tariterators.group_by_keys(expand(self._opened(paths)))
        start = time.perf_counter()
        for number, sample in enumerate(samples):
            latency_s = time.perf_counter() - start
            yield _read(number, sample, latency_s)
            start = time.perf_counter()

    def _opened(self, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The library's opener for a directory; for a client, the client's own stream."""
        for path in paths:
            root = self._arguments["access"]["root"]
            opened = self._library.gopen(f"{root}/{path}") if self._is_directory else self._source.stream(path)
            try:
                yield {"url": path, "stream": opened}
            finally:
                opened.close()


def _read(number: int, sample: dict[str, Any], latency_s: float) -> SampleRead:
    """``read_bytes`` includes headers and padding: the part of the shard that was read for this sample."""
    image, path, key = sample.get("jpg", b""), sample["__url__"], sample["__key__"]
    if len(image) != RECORD_BYTES or not key.isdecimal():
        return SampleRead(latency_s, STRIDE_BYTES, wrong=f"{path}: sample {key} has an image of {len(image)} bytes")
    if not is_checked(number):
        return SampleRead(latency_s, STRIDE_BYTES)
    checksum = (path, image_offset(int(key)), len(image), crc32c.crc32c(image))
    return SampleRead(latency_s, STRIDE_BYTES, checksum=checksum)


def load(arguments: dict[str, Any]) -> Run:
    shards = TarShardStream(arguments)
    prepare(arguments)

    def run(counts: ReadCounts) -> None:
        train(stream(shards, len(arguments["items"]), arguments), counts, arguments)

    return run
