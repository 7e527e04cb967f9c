"""A DataLoader: torch's where torch is installed, otherwise one of our own in the same manner (``forked.py``).

Both have worker processes that read batches ahead, ``PREFETCH`` of them each, and give them to the trainer in order.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from hayloft_bench.loaders.forked import ForkedLoader
from hayloft_bench.loaders.samples import Batch, Read

PREFETCH = 2
"""Batches that each worker is ahead: torch's default."""


class MapStyle(Protocol):
    """Samples by their number."""

    def open(self) -> None:
        """In the worker, before it reads."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Read: ...


class Streaming(Protocol):
    """Samples one after the other, each worker its own part."""

    def open(self) -> None:
        """In the worker, before it reads."""

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        """Those of one worker."""


def loader_name() -> str:
    """Which loader the reader processes use on this machine, for the results; torch is not imported."""
    if importlib.util.find_spec("torch") is None:
        return "own loader of worker processes (torch is not installed)"
    return f"torch {importlib.metadata.version('torch')} DataLoader"


def uses_torch(arguments: dict[str, Any]) -> bool:
    """``arguments["loader"]`` may ask for ``own``."""
    return arguments.get("loader") != "own" and importlib.util.find_spec("torch") is not None


def prepare(arguments: dict[str, Any]) -> None:
    """Imports torch if it will be used: two seconds that no epoch should be charged with."""
    if uses_torch(arguments):
        importlib.import_module("hayloft_bench.loaders.torch_loader")


def in_batches(count: int, size: int) -> list[list[int]]:
    """The numbers of the samples of each batch; the last one may be short, so that nothing is left out."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def load(dataset: MapStyle, arguments: dict[str, Any]) -> Iterator[Batch]:
    """Batches of ``arguments["batch"]`` samples in order, read by ``arguments["workers"]`` processes, none for 0."""
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


def stream(dataset: Streaming, parts: int, arguments: dict[str, Any]) -> Iterator[Batch]:
    """The batches of all workers, by turns; no more workers than there are ``parts`` to be dealt out to them."""
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
    """What one of several workers reads of a share."""
    return list(items[worker::workers])
