"""A checkpoint in safetensors; several readers load its shards at once, as a job does when it restarts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from hayloft_bench.loaders.safetensors_layout import header
from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.content import pieces
from hayloft_bench.workloads.sharding import readers_of, scaled_count, shuffled, split
from hayloft_bench.workloads.whole_files import CLIENTS

TENSORS = 16
"""Matrices in a shard; each comes with the vector of its norm."""
MATRIX_COLUMNS = 4096
MATRIX_ROWS = 4096
"""float16: 32 MiB each, 512 MiB for a shard."""


class Checkpoint:
    """8 shards of 512 MiB at scale 1: 4.3 GB, a language model of 2 billion parameters in float16. One reader loads a
    shard, tensor by tensor, into private memory."""

    name: ClassVar[str] = "checkpoint"
    title: ClassVar[str] = "safetensors shards of 537 MB, 4 parallel readers"
    readers: ClassVar[int] = 4
    reads_whole_files: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("safetensors",)
    access: ClassVar[frozenset[str]] = frozenset({"directory"}) | CLIENTS
    accelerator: ClassVar[Accelerator | None] = None

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        shards, rows = self._planned(sizes)
        identity = {"workload": self.name, "seed": sizes.seed, "rows": rows}
        paths = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
        return dataset_writer.make(directory, identity, paths, partial(_shard, sizes.seed, rows))

    def dataset_bytes(self, sizes: Sizes) -> int:
        shards, rows = self._planned(sizes)
        return shards * sum(_tensor_bytes(shape) for _, shape in _tensors("model-0", rows))

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        order = shuffled([(file.path, file.size_bytes) for file in files], sizes.seed, epoch)
        return [
            Share("hayloft_bench.loaders.safetensors_reader:load", {"items": items})
            for items in split(order, readers_of(sizes, self.readers), ranks, rank)
        ]

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        return sum(file.size_bytes for file in files)

    def _planned(self, sizes: Sizes) -> tuple[int, int]:
        shards, shrink = scaled_count(8, 4, sizes.scale)
        return shards, max(4, round(MATRIX_ROWS * shrink))


def _tensors(path: str, rows: int) -> list[tuple[str, tuple[int, ...]]]:
    shard = path.split("-")[1]
    matrices = [(f"model.layers.{shard}.{number:02d}.weight", (rows, MATRIX_COLUMNS)) for number in range(TENSORS)]
    norms = [(f"model.layers.{shard}.{number:02d}.norm", (MATRIX_COLUMNS,)) for number in range(TENSORS)]
    return [tensor for pair in zip(norms, matrices, strict=True) for tensor in pair]


def _tensor_bytes(shape: tuple[int, ...]) -> int:
    count = 2
    for length in shape:
        count *= length
    return count


def _shard(seed: int, rows: int, path: str) -> Iterator[memoryview | bytes]:
    tensors = _tensors(path, rows)
    yield header([(name, shape, _tensor_bytes(shape)) for name, shape in tensors])
    yield from pieces(seed, path, sum(_tensor_bytes(shape) for _, shape in tensors))
