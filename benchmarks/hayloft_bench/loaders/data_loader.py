"""A DataLoader: torch's if torch is installed, otherwise ``forked_loader.py``, which behaves like it.

Both have worker processes that read batches ahead, ``PREFETCH`` of them each, and pass them to the trainer in order.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from hayloft_bench.loaders.forked_loader import ForkedLoader
from hayloft_bench.loaders.samples import Batch, SampleRead

PREFETCH = 2
"""Batches that each worker is ahead: torch's default."""


class MapDataset(Protocol):
    """Samples by their number."""

    def open(self) -> None:
        """Called in the worker, before its first read."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> SampleRead: ...


class StreamDataset(Protocol):
    """Samples in sequence; each worker reads a part of them."""

    def open(self) -> None:
        """Called in the worker, before its first read."""

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        """The batches of one worker."""


def loader_name() -> str:
    """The loader that the reader processes use on this machine, for the results; does not import torch."""
    if importlib.util.find_spec("torch") is None:
        return "own loader of worker processes (torch is not installed)"
    return f"torch {importlib.metadata.version('torch')} DataLoader"


def uses_torch(arguments: dict[str, Any]) -> bool:
    """``arguments["loader"]`` may be ``own``: then torch is not used even if it is installed."""
    return arguments.get("loader") != "own" and importlib.util.find_spec("torch") is not None


def prepare(arguments: dict[str, Any]) -> None:
    """Imports torch if it will be used: that takes two seconds, which are not part of an epoch."""
    if uses_torch(arguments):
        importlib.import_module("hayloft_bench.loaders.torch_loader")


def in_batches(count: int, size: int) -> list[list[int]]:
    """The sample numbers of each batch. The last batch may be short, so that no sample is left out."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def load(dataset: MapDataset, arguments: dict[str, Any]) -> Iterator[Batch]:
    """Batches of ``arguments["batch"]`` samples in order, read by ``arguments["workers"]`` processes; 0: by this
    process."""
    batches, workers = in_batches(len(dataset), arguments["batch"]), _workers(arguments, len(dataset))
    if uses_torch(arguments):
        from hayloft_bench.loaders import torch_loader

        yield from torch_loader.load(dataset, batches, workers, PREFETCH)
        return
    if not workers:
        dataset.open()
        yield from ([dataset[number] for number in batch] for batch in batches)
        return
    with closing(ForkedLoader(dataset, workers)) as loader:
        yield from loader.map(batches, PREFETCH)


def stream(dataset: StreamDataset, parts: int, arguments: dict[str, Any]) -> Iterator[Batch]:
    """The batches of all workers, in turn. The dataset has ``parts`` (shards): there are no more workers than that."""
    workers = _workers(arguments, parts)
    if uses_torch(arguments):
        from hayloft_bench.loaders import torch_loader

        yield from torch_loader.stream(dataset, workers, PREFETCH)
        return
    if not workers:
        dataset.open()
        yield from dataset.batches(0, 1)
        return
    with closing(ForkedLoader(dataset, workers)) as loader:
        yield from loader.stream(PREFETCH)


def _workers(arguments: dict[str, Any], parts: int) -> int:
    return min(int(arguments["workers"]), parts)


def part_of(items: Sequence[Any], worker: int, workers: int) -> list[Any]:
    """The items of a share that one of its workers reads."""
    return list(items[worker::workers])
