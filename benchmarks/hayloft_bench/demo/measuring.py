"""Reads one epoch of one workload from one target and makes a row of it; and checks every byte of a directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hayloft_bench.demo.crew import IMPORTS, ReaderPool
from hayloft_bench.demo.dataset import PROJECTION, MadeDataset, dataset_digest
from hayloft_bench.demo.errors import WrongBytes
from hayloft_bench.demo.results import Row
from hayloft_bench.demo.workloads import READERS, shuffled_shares

_JOBS = "hayloft_bench.demo.workloads"
DIGEST_READERS = 4
SETTLE_S = 0.05
"""The store raises its counter when a response has ended, a moment after its last byte has arrived."""


class Measuring:
    """One dataset, the places it can be read from, and the store's own counter of bytes sent."""

    def __init__(self, dataset: MadeDataset, crew: ReaderPool, bytes_sent: Callable[[], int]) -> None:
        self._dataset = dataset
        self._crew = crew
        self._bytes_sent = bytes_sent

    def epoch(
        self,
        workload: str,
        target: str,
        source: Mapping[str, str],
        epoch: int,
        *,
        before_start: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda count: None,
    ) -> Row:
        """Epochs count from 1; every epoch has its own order, which is the same for all targets."""
        paths = [file.path for file in self._dataset.below(workload)]
        shares = self._shares(
            workload, shuffled_shares(paths, READERS[workload], self._dataset.plan.seed, epoch), epoch
        )
        for share in shares:
            share["source"] = dict(source)
        sent_bytes = 0

        def start() -> None:
            nonlocal sent_bytes
            before_start()
            sent_bytes = self._settled_bytes_sent()

        imports = [*IMPORTS[source["kind"]], *(["pyarrow.parquet"] if workload == "parquet" else [])]
        reading = self._crew.run(f"{_JOBS}:{workload}", shares, imports=imports, before_start=start, progress=progress)
        return Row.of(workload, target, epoch, reading, self._settled_bytes_sent() - sent_bytes)

    def _shares(self, workload: str, dealt: list[list[str]], epoch: int) -> list[dict[str, Any]]:
        if workload != "parquet":
            return [{"items": paths} for paths in dealt]
        plan = self._dataset.plan
        # Every table has an order of its row groups, other in each epoch.
        groups = {
            path: shuffled_shares(range(plan.row_groups), 1, plan.seed + number, epoch)[0]
            for number, path in enumerate(sorted(path for share in dealt for path in share))
        }
        return [{"items": [(path, groups[path]) for path in share], "columns": PROJECTION} for share in dealt]

    def check_every_byte(
        self, directory: Path, label: str, progress: Callable[[int], None] = lambda count: None
    ) -> tuple[str, int]:
        """Reads all files and compares their SHA-256 with what was uploaded; gives that of the whole dataset and the
        bytes that the store sent for it. Raises WrongBytes with the names of wrong files."""
        by_size = sorted(self._dataset.files, key=lambda file: (-file.size_bytes, file.path))
        source = {"kind": "directory", "root": str(directory)}
        shares = [
            {"items": [file.path for file in by_size[reader::DIGEST_READERS]], "source": source}
            for reader in range(DIGEST_READERS)
        ]
        before_bytes = self._settled_bytes_sent()
        reading = self._crew.run(f"{_JOBS}:digests", shares, progress=progress)
        found = dataset_digest(reading.digests)
        if found != self._dataset.digest():
            raise WrongBytes(self._complaint(reading.digests, directory, label))
        return found, self._settled_bytes_sent() - before_bytes

    def _complaint(self, digests: Mapping[str, str], directory: Path, label: str) -> str:
        wrong = [file.path for file in self._dataset.files if digests.get(file.path) != file.sha256]
        named = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        return (
            f"WRONG BYTES, {label}: {len(wrong)} of {len(self._dataset.files)} files below {directory} differ: {named}"
        )

    def _settled_bytes_sent(self) -> int:
        time.sleep(SETTLE_S)
        return self._bytes_sent()
