"""Small datasets of the benchmark's workloads, and reading them as the benchmark does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import crc32c

from hayloft_bench.results.model import Access, DatasetFile, Share, Sizes
from hayloft_bench.run.jobs import job_of
from hayloft_bench.run.reader_pool import ReadCounts
from hayloft_bench.workloads import WORKLOADS

SIZES = Sizes(scale=0.001, seed=11)


class WrittenData:
    """Checksums of the files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def checksum(self, path: str, offset: int, length: int) -> int | None:
        with (self._directory / path).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        return crc32c.crc32c(data) if len(data) == length else None


def read_here(shares: Sequence[Share], root: Path, **changed: Any) -> list[ReadCounts]:
    """The shares, one after the other, in this process and without workers."""
    every = []
    for share in shares:
        arguments = {**share.arguments, "workers": 0, **changed, "access": asdict(Access("directory", str(root)))}
        run = job_of(share.job)(arguments)
        every.append(ReadCounts())
        run(every[-1])
    return every


def wrong_of(every: Sequence[ReadCounts], expected: WrittenData) -> list[str]:
    """The reads that differ from the files."""
    answers = [counts.answer() for counts in every]
    wrong = [what for answer in answers for what in answer["wrong"]]
    for answer in answers:
        wrong += [path for path, *where, crc in answer["checks"] if expected.checksum(path, *where) != crc]
    return wrong


def checked_of(every: Sequence[ReadCounts]) -> int:
    """The number of comparisons."""
    return sum(len(answer["checks"]) + answer["good"] for answer in (counts.answer() for counts in every))


def shares_of(name: str, files: Sequence[DatasetFile], epoch: int = 0, readers: int | None = None) -> list[Share]:
    """Of a single node."""
    return WORKLOADS[name].shares(files, Sizes(SIZES.scale, SIZES.seed, readers), epoch, 1, 0)
