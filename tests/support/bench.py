"""Small datasets of the benchmark's workloads, and reading them as the benchmark does."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import crc32c

from hayloft_bench.results.model import Access, DatasetFile, Share, Sizes
from hayloft_bench.run.reader_pool import ReadCounts
from hayloft_bench.workloads import WORKLOADS

SIZES = Sizes(scale=0.001, seed=11)


class WrittenTruth:
    """What is in the directory as it was made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def checksum(self, path: str, offset: int, length: int) -> int | None:
        with (self._directory / path).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        return crc32c.crc32c(data) if len(data) == length else None


def read_here(shares: Sequence[Share], root: Path, **changed: Any) -> list[ReadCounts]:
    """The shares, one after the other, in this process and without workers."""
    tallies = []
    for share in shares:
        module, _, function = share.job.partition(":")
        arguments = {**share.arguments, "workers": 0, **changed, "access": asdict(Access("directory", str(root)))}
        run = getattr(importlib.import_module(module), function)(arguments)
        tallies.append(ReadCounts())
        run(tallies[-1])
    return tallies


def wrong_of(tallies: Sequence[ReadCounts], truth: WrittenTruth) -> list[str]:
    """What the tallies say was read and is not so."""
    answers = [tally.answer() for tally in tallies]
    wrong = [what for answer in answers for what in answer["wrong"]]
    for answer in answers:
        wrong += [path for path, *where, crc in answer["checks"] if truth.checksum(path, *where) != crc]
    return wrong


def checked_of(tallies: Sequence[ReadCounts]) -> int:
    """How many comparisons there were."""
    return sum(len(answer["checks"]) + answer["good"] for answer in (tally.answer() for tally in tallies))


def shares_of(name: str, files: Sequence[DatasetFile], epoch: int = 0, readers: int | None = None) -> list[Share]:
    """Of a node that is alone."""
    return WORKLOADS[name].shares(files, Sizes(SIZES.scale, SIZES.seed, readers), epoch, 1, 0)
