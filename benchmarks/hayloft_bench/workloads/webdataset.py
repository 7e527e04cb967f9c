"""Tar shards read from front to back by the webdataset library, in an order of shards that changes with the epoch."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from hayloft_bench.loaders.shard_layout import RECORD_BYTES, STRIDE_BYTES
from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.content import content
from hayloft_bench.workloads.imagenet import RESNET50_H100
from hayloft_bench.workloads.sharding import readers_of, scaled_count, shuffled, split
from hayloft_bench.workloads.whole_files import CLIENTS

RECORDS = 1_251
"""114,660 B × 1,251 are the 143 MB of a shard: the records and shards of ResNet-50 in MLPerf Storage."""
_MTIME = 1_704_067_200
"""Of every member, so that the same seed gives the same bytes on another day."""


class WebDataset:
    """16 shards at scale 1; a sample is a ``.jpg`` of 114,660 B and its ``.cls``, a class number."""

    name: ClassVar[str] = "webdataset"
    title: ClassVar[str] = "tar shards of 143 MB, sequential, shuffled shards"
    readers: ClassVar[int] = 2
    workers: ClassVar[int] = 2
    batch: ClassVar[int] = 64
    reads_whole_files: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("webdataset",)
    access: ClassVar[frozenset[str]] = frozenset({"directory"}) | CLIENTS
    accelerator: ClassVar[Accelerator | None] = RESNET50_H100

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        shards, records = self._planned(sizes)
        identity = {"workload": self.name, "seed": sizes.seed, "records": records}
        paths = [f"shard-{number:06d}.tar" for number in range(shards)]
        return dataset_writer.make(directory, identity, paths, partial(_shard, sizes.seed, records))

    def dataset_bytes(self, sizes: Sizes) -> int:
        shards, records = self._planned(sizes)
        return shards * (records * STRIDE_BYTES + tarfile.RECORDSIZE)

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        order = shuffled([file.path for file in files], sizes.seed, epoch)
        settings = {
            "batch": self.batch,
            "workers": self.workers,
            "seed": sizes.seed + epoch,
            "samples_per_item": self._planned(sizes)[1],
        }
        return [
            Share("hayloft_bench.loaders.webdataset_reader:load", {**settings, "items": items})
            for items in split(order, readers_of(sizes, self.readers), ranks, rank)
        ]

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        return sum(file.size_bytes for file in files)

    def _planned(self, sizes: Sizes) -> tuple[int, int]:
        shards, shrink = scaled_count(16, 4, sizes.scale)
        return shards, max(8, round(RECORDS * shrink))


def _shard(seed: int, records: int, path: str) -> Iterator[memoryview | bytes]:
    for record in range(records):
        yield _head(f"{record:06d}.jpg", RECORD_BYTES)
        yield content(seed, path, record * RECORD_BYTES, (record + 1) * RECORD_BYTES)
        label = str(record % 1000).encode()
        padding = -RECORD_BYTES % tarfile.BLOCKSIZE
        yield bytes(padding) + _head(f"{record:06d}.cls", len(label)) + label.ljust(tarfile.BLOCKSIZE, b"\0")
    # Two empty blocks end an archive, and its length is a multiple of 10 KiB.
    yield bytes(2 * tarfile.BLOCKSIZE + -(records * STRIDE_BYTES + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)


def _head(name: str, size_bytes: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size_bytes, _MTIME, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)
