"""Brings a target into the state of a phase: with an empty cache, with a full one, verified."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from csi_driver.model.errors import HayloftError
from hayloft_bench.errors import BenchError
from hayloft_bench.results.model import Access
from hayloft_bench.run import cache_states as states
from hayloft_bench.run.expected_data import read_all, wrong_bytes
from hayloft_bench.run.measurement import COUNTED_KINDS, Measuring, Watch
from hayloft_bench.run.progress import Steps
from hayloft_bench.run.stopping import Stopping
from hayloft_bench.targets.base import TargetBase
from hayloft_lab.driver import DriverFailed

FAILURES = (BenchError, DriverFailed, HayloftError, OSError, ValueError)
"""Errors that take a target out, and not the run. A target must raise nothing else."""
FILL_PASSES = 3
"""A cache that fills in the background may have dropped some of what was read the first time."""


class WrongDataset(BenchError):
    """The target shows something else than the dataset."""


class Preparing:
    """The states of the targets of one workload. ``steps`` shows the progress."""

    def __init__(
        self,
        measuring: Measuring,
        store_directory: Path,
        stopping: Stopping,
        steps: Steps,
        *,
        verify: bool,
        evict_own_files: bool = False,
    ) -> None:
        self._measuring, self._store_directory = measuring, store_directory
        self._stopping, self._steps, self._verifies = stopping, steps, verify
        self._evict_own_files = evict_own_files
        self._verified: set[str] = set()
        self.epoch_s: dict[str, float] = {}
        """How long the last complete read took, by target."""

    @contextlib.contextmanager
    def fresh(self, target: TargetBase, limit_bytes: int | None = None) -> Iterator[Access]:
        """The running target, with nothing cached on the node."""
        target.stop()
        target.clear()
        self.drop(store_stays=True)
        try:
            with self._stopping.shield():
                access = target.start(cache_limit_bytes=limit_bytes)
            yield access
        finally:
            self.stop(target)

    def filled(self, target: TargetBase) -> Access:
        """The running target, with the complete dataset in its cache, and verified."""
        with self._stopping.shield():
            access = target.start()
        self.fill(target, access)
        if target.kind == "hayloft":
            # FUSE or hard links is decided when a volume is published: this is the view of the next pod on the node.
            target.stop()
            with self._stopping.shield():
                access = target.start()
        return access

    def fill(self, target: TargetBase, access: Access) -> None:
        """Reads everything until the store sends nothing more; the first pass verifies. Raises WrongDataset."""
        for _ in range(FILL_PASSES):
            before_bytes = self._measuring.server.bytes_sent()
            if not self.verify(target, access):
                self.read_all(target, access)
            sent_bytes = self._measuring.server.bytes_sent() - before_bytes
            if target.kind not in COUNTED_KINDS or sent_bytes <= states.CACHED_SHARE * self._measuring.dataset_bytes:
                break

    def drop(self, running: tuple[TargetBase, Access] | None = None, *, store_stays: bool = False) -> None:
        """Drops the page cache; ``store_stays``: the store's own files are in it afterwards. ``running``: the target
        whose files are evicted where the page cache of the machine is not dropped."""
        files = self._measuring.paths
        if self._evict_own_files and running is not None:
            target, access = running
            if access.kind == "directory":
                # First: a FUSE mount has pages of its own, and reading them again would fill those of the cache.
                files = [Path(access.root, file.path) for file in self._measuring.expected.files] + files
            files += states.files_below(target.directory)
        states.drop_page_cache(self._measuring.plain, files, own_files=self._evict_own_files)
        if store_stays and not self._evict_own_files:
            states.read_back(self._store_directory)

    def read_all(self, target: TargetBase, access: Access, *, compare: bool = False) -> None:
        """Every byte once, not measured. Raises WrongDataset if it compares and something differs."""
        what = "comparing every byte" if compare else "reading everything once"
        with self.step(f"{target.title}: {what}") as progress:
            reading = read_all(
                self._measuring.pool, self._measuring.expected, access, compare=compare, progress=Watch(progress)
            )
        if reading.wrong:
            raise WrongDataset(wrong_bytes(reading.wrong))
        self.epoch_s[target.name] = reading.seconds

    def verify(self, target: TargetBase, access: Access) -> bool:
        """Compares every byte, once per target; False if it was done before. Raises WrongDataset."""
        if not self._verifies or target.name in self._verified:
            return False
        if access.kind == "directory" and (difference := self._measuring.expected.difference(Path(access.root))):
            raise WrongDataset(difference)
        self.read_all(target, access, compare=True)
        self._verified.add(target.name)
        return True

    def stop(self, target: TargetBase) -> None:
        """An error is shown and has no other effect: the figures are complete."""
        try:
            target.stop()
        except FAILURES as error:
            self._steps.note(f"{target.title} failed to stop: {error}")

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Callable[[int], None]]:
        """A progress bar in bytes, with the function that sets it."""
        total = total or self._measuring.dataset_bytes
        with self._steps.step(f"{self._measuring.workload.name}, {title}", total, silent=True) as step:
            yield step.reach
