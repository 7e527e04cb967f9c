"""Tokens of a language model: memory-mapped files, read in random windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy

from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.content import pieces
from hayloft_bench.workloads.sharding import readers_of, scaled_count, shuffled, split

WINDOW_BYTES = (8 << 10, 32 << 10)
"""4,096 to 16,384 tokens of two bytes."""
FILE_BYTES = 512 << 20


class Tokens:
    """Files of 512 MiB of uint16, four at scale 1, cut into consecutive windows of 8 to 32 KiB. The windows are part of
    the dataset; an epoch reads each of them once, in its own order."""

    name: ClassVar[str] = "tokens"
    title: ClassVar[str] = "windows of 8 to 32 KiB at random, memory-mapped"
    readers: ClassVar[int] = 2
    workers: ClassVar[int] = 2
    batch: ClassVar[int] = 16
    reads_whole_files: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
    """A client of a store has no memory map: training from a store streams shards instead, as webdataset does."""
    accelerator: ClassVar[Accelerator | None] = None

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        count, size_bytes = self._planned(sizes)
        paths = [f"tokens-{number:04d}.bin" for number in range(count)]
        identity = {"workload": self.name, "seed": sizes.seed, "size_bytes": size_bytes}
        return dataset_writer.make(directory, identity, paths, partial(pieces, sizes.seed, size_bytes=size_bytes))

    def dataset_bytes(self, sizes: Sizes) -> int:
        count, size_bytes = self._planned(sizes)
        return count * size_bytes

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        windows = [window for file in files for window in _windows(file, sizes.seed)]
        order = shuffled(windows, sizes.seed, epoch)
        return [
            Share(
                "hayloft_bench.loaders.token_reader:load",
                {"batch": self.batch, "workers": self.workers, "items": items},
            )
            for items in split(order, readers_of(sizes, self.readers), ranks, rank)
        ]

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        return sum(file.size_bytes for file in files)

    def _planned(self, sizes: Sizes) -> tuple[int, int]:
        count, shrink = scaled_count(4, 2, sizes.scale)
        return count, max(256 << 10, round(FILE_BYTES * shrink) & ~1)


def _windows(file: DatasetFile, seed: int) -> list[tuple[str, int, int]]:
    """(path, offset, length), consecutive up to the end of the file; the last one may be short."""
    least, most = WINDOW_BYTES
    draw = numpy.random.default_rng([seed, file.size_bytes, *file.path.encode()])
    lengths = draw.integers(least // 2, most // 2, file.size_bytes // least + 1, endpoint=True) * 2
    ends = [stop for stop in numpy.cumsum(lengths).tolist() if stop < file.size_bytes] + [file.size_bytes]
    return [(file.path, start, stop - start) for start, stop in itertools.pairwise([0, *ends])]
