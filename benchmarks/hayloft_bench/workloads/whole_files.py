"""The base of the workloads in which one sample is one complete file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.content import pieces, varied_sizes
from hayloft_bench.workloads.sharding import readers_of, scaled_count, shuffled, split

CLIENTS = frozenset({"boto3", "s3fs", "obstore", "s3torchconnector"})


class WholeFiles:
    """Files of about one size, one per sample, read completely in a shuffled order by a DataLoader with workers.

    A reader process is one trainer with its own loader, so ``readers × workers`` processes read at a time."""

    name: ClassVar[str]
    title: ClassVar[str]
    readers: ClassVar[int] = 2
    workers: ClassVar[int] = 4
    """Worker processes of each reader."""
    batch: ClassVar[int]
    """Samples per batch, unless an accelerator is emulated."""
    reads_whole_files: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    access: ClassVar[frozenset[str]] = frozenset({"directory"}) | CLIENTS
    accelerator: ClassVar[Accelerator | None] = None
    full_count: ClassVar[int]
    """Files at scale 1."""
    least_count: ClassVar[int]
    mean_bytes: ClassVar[int]
    sigma_bytes: ClassVar[int] = 0
    least_bytes: ClassVar[int] = 4096
    form: ClassVar[str] = "raw"
    """How a sample is loaded: ``raw`` as bytes, ``npy`` by numpy.load."""

    def path(self, number: int) -> str:
        """The path of one file."""
        raise NotImplementedError

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        planned = self._planned(sizes)
        identity = {"workload": self.name, "seed": sizes.seed}
        return dataset_writer.make(
            directory, identity | {"sizes": list(planned.values())}, list(planned), self._writer(sizes)
        )

    def dataset_bytes(self, sizes: Sizes) -> int:
        return sum(self._planned(sizes).values())

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        order = shuffled([(file.path, file.size_bytes) for file in files], sizes.seed, epoch)
        settings: dict[str, Any] = {"batch": self.batch, "workers": self.workers, "form": self.form}
        return [
            Share("hayloft_bench.loaders.file_reader:load", {**settings, "items": items})
            for items in split(order, readers_of(sizes, self.readers), ranks, rank)
        ]

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        return sum(file.size_bytes for file in files)

    def _planned(self, sizes: Sizes) -> dict[str, int]:
        count, shrink = scaled_count(self.full_count, self.least_count, sizes.scale)
        drawn = varied_sizes(
            sizes.seed, self.name, count, self.mean_bytes * shrink, self.sigma_bytes * shrink, self.least_bytes
        )
        return {self.path(number): size_bytes for number, size_bytes in enumerate(drawn)}

    def _writer(self, sizes: Sizes) -> dataset_writer.Content:
        return partial(self._content, sizes.seed, self._planned(sizes))

    def _content(self, seed: int, planned: dict[str, int], path: str) -> Iterable[memoryview | bytes]:
        return pieces(seed, path, planned[path])
