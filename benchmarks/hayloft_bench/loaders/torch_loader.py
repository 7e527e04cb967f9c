"""The same datasets in torch's own DataLoader. The module imports torch, which only the extra ``torch`` installs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from hayloft_bench.loaders.samples import Batch, SampleRead


class _Map(Dataset):  # type: ignore[misc, type-arg, unused-ignore]
    """Samples by number; opens the dataset at the first request, which is in the worker."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._is_open = dataset, False

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> SampleRead:
        if not self._is_open:
            self._dataset.open()
            self._is_open = True
        read: SampleRead = self._dataset[number]
        return read


class _Stream(IterableDataset):  # type: ignore[misc, type-arg, unused-ignore]
    """The batches of one worker."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        self._dataset.open()
        batches: Iterator[Batch] = self._dataset.batches(*((0, 1) if info is None else (info.id, info.num_workers)))
        return batches


def load(dataset: Any, batches: list[list[int]], workers: int, prefetch: int) -> Iterator[Batch]:
    """Map-style, the batches given by a batch sampler."""
    return iter(DataLoader(_Map(dataset), batch_sampler=batches, collate_fn=list, **_settings(workers, prefetch)))


def stream(dataset: Any, workers: int, prefetch: int) -> Iterator[Batch]:
    """Iterable; the batches are made by the dataset."""
    return iter(DataLoader(_Stream(dataset), batch_size=None, **_settings(workers, prefetch)))


def _settings(workers: int, prefetch: int) -> dict[str, Any]:
    if not workers:
        return {"num_workers": 0}
    # Torch warns of more workers than processors. These wait for storage, and every target gets the same number.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    return {"num_workers": workers, "prefetch_factor": prefetch, "multiprocessing_context": "fork"}
