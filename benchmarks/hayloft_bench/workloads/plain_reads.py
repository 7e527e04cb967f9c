"""The data path alone: plain reads without a loader and its workers, of long files, of small files, and of the same
files by several readers at a time. Measured beside obstore alone, which is the limit of network and store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.content import pieces, varied_sizes
from hayloft_bench.workloads.sharding import readers_of, shuffled, split

_SHARD_BYTES = 143_000_000


class PlainReads:
    """Files that are read completely, in a shuffled order, each by one reader."""

    name: ClassVar[str]
    title: ClassVar[str]
    readers: ClassVar[int]
    reads_whole_files: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    access: ClassVar[frozenset[str]] = frozenset({"directory", "obstore"})
    accelerator: ClassVar[Accelerator | None] = None
    by_ranges: ClassVar[bool]
    """Whether a client reads ranges into a file on the disk, or complete objects into memory."""

    def planned(self, sizes: Sizes) -> dict[str, int]:
        """Size in bytes by path."""
        raise NotImplementedError

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        planned = self.planned(sizes)
        identity = {"workload": self.name, "seed": sizes.seed, "sizes": list(planned.values())}
        return dataset_writer.make(directory, identity, list(planned), partial(_content, sizes.seed, planned))

    def dataset_bytes(self, sizes: Sizes) -> int:
        return sum(self.planned(sizes).values())

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        order = shuffled([(file.path, file.size_bytes) for file in files], sizes.seed, epoch)
        rank_items = order[rank::ranks]
        return [
            Share(
                "hayloft_bench.loaders.plain_reader:load",
                {"items": items, "all": [] if reader else rank_items, "ranges": self.by_ranges},
            )
            for reader, items in enumerate(self._split(rank_items, readers_of(sizes, self.readers)))
        ]

    def _split(self, items: list[tuple[str, int]], readers: int) -> list[list[tuple[str, int]]]:
        return split(items, readers, 1, 0)

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        return sum(file.size_bytes for file in files)


class LongReads(PlainReads):
    """One file, one reader: how fast a sequential read can be."""

    name: ClassVar[str] = "long"
    title: ClassVar[str] = "one file of 1 GiB, plain reads"
    readers: ClassVar[int] = 1
    by_ranges: ClassVar[bool] = True

    def planned(self, sizes: Sizes) -> dict[str, int]:
        return {"file.bin": max(16 << 20, int(sizes.scale * (1 << 30)))}


class ShardReads(PlainReads):
    """Several long files at a time."""

    name: ClassVar[str] = "shards"
    title: ClassVar[str] = "4 files of 143 MB, plain reads"
    readers: ClassVar[int] = 4
    by_ranges: ClassVar[bool] = True

    def planned(self, sizes: Sizes) -> dict[str, int]:
        return _shards(sizes)


class SmallReads(PlainReads):
    """Many small files: opening and closing is most of the work."""

    name: ClassVar[str] = "small"
    title: ClassVar[str] = "2,400 files of 110 kB, plain reads"
    readers: ClassVar[int] = 8
    by_ranges: ClassVar[bool] = False

    def planned(self, sizes: Sizes) -> dict[str, int]:
        return _small(sizes)


class SharedReads(PlainReads):
    """Several readers of one dataset, each of which reads all of it, as several jobs on a node do. Every byte is needed
    from the store once."""

    name: ClassVar[str] = "shared"
    title: ClassVar[str] = "4 shards and 2,400 small files, all read by each of 8 readers"
    readers: ClassVar[int] = 8
    access: ClassVar[frozenset[str]] = frozenset({"directory"})
    by_ranges: ClassVar[bool] = False

    def planned(self, sizes: Sizes) -> dict[str, int]:
        return _shards(sizes) | _small(sizes)

    def _split(self, items: list[tuple[str, int]], readers: int) -> list[list[tuple[str, int]]]:
        return [items] * readers


def _shards(sizes: Sizes) -> dict[str, int]:
    return {f"shards/{number:04d}.tar": max(4 << 20, int(sizes.scale * _SHARD_BYTES)) for number in range(4)}


def _small(sizes: Sizes) -> dict[str, int]:
    drawn = varied_sizes(sizes.seed, "small", max(80, int(sizes.scale * 2400)), 110_000, 35_000, 8_000)
    return {f"small/{number // 400:03d}/{number:06d}.jpg": size_bytes for number, size_bytes in enumerate(drawn)}


def _content(seed: int, planned: dict[str, int], path: str) -> Iterable[memoryview]:
    return pieces(seed, path, planned[path])
