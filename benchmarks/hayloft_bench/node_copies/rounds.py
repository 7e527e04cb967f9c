"""The rounds of ``warm`` and its variants: each way once in each repetition, in an order that is shifted by one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hayloft_bench.node_copies.copiers import COPIERS, Copied, Copier, Node
from hayloft_bench.results.model import DatasetFile, Measurement
from hayloft_bench.run.cache_states import read_back
from hayloft_bench.run.page_cache import write_out
from hayloft_bench.run.preparation import FAILURES
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.row_builder import Where, of_work, without_figure
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.run.touched_memory import touch_memory
from hayloft_bench.run.trash import Trash
from hayloft_lab.nginx_files import NginxFiles
from hayloft_lab.seaweedfs import SeaweedFsServer

_TOUCHED_DATASETS = 4
"""A copy has its pages in the page cache, and the host takes back what is free: some 4 GB in 10 s here."""


@dataclass(frozen=True)
class WarmRounds:
    """``where`` is the row of the run; target, repetition and time are filled in."""

    where: Where
    files: Sequence[DatasetFile]
    server: SeaweedFsServer | NginxFiles
    store: Path
    """The directory from which the server reads."""
    directory: Path
    steps: Steps
    stopping: Stopping
    trash: Trash
    add_row: Callable[[Measurement], None]
    chosen: Sequence[str] = ()
    """Of ``COPIERS``; without any, all."""

    def run(self, repetitions: int) -> None:
        """Raises Stopped."""
        usable = self._usable()
        self.directory.mkdir(exist_ok=True)
        for repetition in range(repetitions):
            shift = repetition % len(usable)
            for name in (*usable[shift:], *usable[:shift]):
                where = replace(self.where, target=name, repetition=repetition, started_at=time.time())
                try:
                    row = self._row(COPIERS[name], name, where)
                except FAILURES as error:
                    row = without_figure(where, str(error))
                self.add_row(row)
                self._say(COPIERS[name], row)

    def _usable(self) -> list[str]:
        usable = []
        for name in self.chosen or COPIERS:
            copier = COPIERS[name]
            reason = copier.unavailable()
            if reason:
                self.steps.note(f"{copier.facts.title} is left out: {reason}")
                self.add_row(without_figure(replace(self.where, target=name), reason))
            else:
                usable.append(name)
        return usable

    def _row(self, copier: Copier, name: str, where: Where) -> Measurement:
        directory = self.directory / f"{name[:3]}{where.repetition}"
        directory.mkdir()
        # What the one before has written is on the disk, and the store does not read from it.
        write_out(self.directory)
        read_back(self.store)

        def touch() -> None:
            touch_memory(_TOUCHED_DATASETS * where.dataset_bytes)

        sent_before = self._sent_bytes()
        try:
            with self.steps.step(f"warm, repetition {where.repetition + 1}: {copier.facts.title}", silent=True):
                copied = copier.copy(Node(directory, self.server, self.stopping, touch))
            sent_bytes = None if sent_before is None else (self._sent_bytes() or 0) - sent_before
            return of_work(
                where,
                seconds=copied.seconds,
                count_bytes=where.dataset_bytes,
                samples=len(self.files),
                cpu_s=copied.cpu_s,
                origin_bytes=sent_bytes,
                reason=objection(self.files, copied),
            )
        finally:
            self.trash.put(directory)

    def _sent_bytes(self) -> int | None:
        """By the server; None: it does not count them."""
        return self.server.bytes_sent() if isinstance(self.server, SeaweedFsServer) else None

    def _say(self, copier: Copier, row: Measurement) -> None:
        if row.seconds is not None:
            rate = f"{(row.bytes_per_s or 0) / 1e6:,.0f} MB/s, {row.cpu_s_per_gb or 0:.2f} CPU s/GB"
            invalid = f"; INVALID: {row.reason}" if row.reason else ""
            self.steps.note(
                f"repetition {row.repetition + 1}: {copier.facts.title}: {row.seconds:.2f} s, {rate}{invalid}"
            )
        elif row.reason:
            self.steps.note(f"repetition {row.repetition + 1}: {copier.facts.title}: {row.reason}")


def objection(files: Sequence[DatasetFile], copied: Copied) -> str:
    """Why the dataset is not on the node; empty if it is. Names of files are those of the cache for Hayloft, so sizes
    are compared, and blocks: a sparse file has the size of a complete one."""
    found: list[int] = []
    blocks_bytes = 0
    for folder, _, names in os.walk(copied.directory):
        for name in names:
            status = os.lstat(f"{folder}/{name}")
            found.append(status.st_size)
            blocks_bytes += status.st_blocks * 512
    expected = sorted(file.size_bytes for file in files)
    if sorted(found) != expected:
        return f"{len(found)} files of {sum(found)} bytes are there, and not {len(expected)} of {sum(expected)}"
    if blocks_bytes < sum(expected):
        return f"{blocks_bytes} of {sum(expected)} bytes are there"
    return ""
