"""Brings a target into the state of a phase: from nothing, with a full cache, verified."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from csi_driver.model.errors import HayloftError
from hayloft_bench.demo.errors import DemoFailed
from hayloft_bench.demo.showing import Steps
from hayloft_bench.demo.stopping import Stopping
from hayloft_bench.errors import BenchError
from hayloft_bench.results.model import Access
from hayloft_bench.run import cache_states as states
from hayloft_bench.run import expected_data as truth
from hayloft_bench.run.measurement import COUNTED_KINDS, Measuring, Watch
from hayloft_bench.targets.base import TargetBase

FAILURES = (DemoFailed, BenchError, HayloftError, OSError, ValueError)
"""What takes a target out, and not the run. A target is to raise nothing else."""
FILL_PASSES = 3
"""A cache that fills in the background may have missed some of what was read the first time."""


class WrongDataset(BenchError):
    """What the target shows is not the dataset."""


class Preparing:
    """The states of the targets of one workload. ``steps`` shows what is being done."""

    def __init__(
        self, measuring: Measuring, store_directory: Path, stopping: Stopping, steps: Steps, *, verify: bool
    ) -> None:
        self._measuring, self._store_directory = measuring, store_directory
        self._stopping, self._steps, self._verifies = stopping, steps, verify
        self._verified: set[str] = set()
        self.epoch_s: dict[str, float] = {}
        """How long reading everything took the last time, by target."""

    @contextlib.contextmanager
    def fresh(self, target: TargetBase, limit_bytes: int | None = None) -> Iterator[Access]:
        """The target with nothing cached anywhere but in the store."""
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
        """The target running with all of the dataset in its cache, and verified."""
        with self._stopping.shield():
            access = target.start()
        for _ in range(FILL_PASSES):
            before_bytes = self._measuring.server.bytes_sent()
            if not self.verify(target, access):
                self.read_all(target, access)
            sent_bytes = self._measuring.server.bytes_sent() - before_bytes
            if target.kind not in COUNTED_KINDS or sent_bytes <= states.CACHED_SHARE * self._measuring.dataset_bytes:
                break
        if target.kind == "hayloft":
            # What a volume is shown as is decided when it is published: this is what the next pod on the node gets.
            target.stop()
            with self._stopping.shield():
                access = target.start()
        return access

    def drop(self, *, store_stays: bool = False) -> None:
        """The page cache; ``store_stays``: the store's own files are in it afterwards."""
        states.drop_page_cache(self._measuring.plain, self._measuring.paths)
        if store_stays:
            states.read_back(self._store_directory)

    def read_all(self, target: TargetBase, access: Access, *, compare: bool = False) -> None:
        """Every byte once, not measured. Raises WrongDataset if it compares and something differs."""
        what = "comparing every byte" if compare else "reading everything once"
        with self.step(f"{target.title}: {what}") as progress:
            reading = truth.read_all(
                self._measuring.crew, self._measuring.truth, access, compare=compare, progress=Watch(progress)
            )
        if reading.wrong:
            raise WrongDataset(truth.wrong_bytes(reading.wrong))
        self.epoch_s[target.name] = reading.seconds

    def verify(self, target: TargetBase, access: Access) -> bool:
        """Compares every byte, once per target; False if that was done before. Raises WrongDataset."""
        if not self._verifies or target.name in self._verified:
            return False
        if access.kind == "directory" and (difference := self._measuring.truth.difference(Path(access.root))):
            raise WrongDataset(difference)
        self.read_all(target, access, compare=True)
        self._verified.add(target.name)
        return True

    def stop(self, target: TargetBase) -> None:
        """What goes wrong then is told, and nothing more: its figures are made already."""
        try:
            target.stop()
        except FAILURES as error:
            self._steps.note(f"{target.title} did not stop in order: {error}")

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Callable[[int], None]]:
        """A bar that is told bytes."""
        total = total or self._measuring.dataset_bytes
        with self._steps.step(f"{self._measuring.workload.name}, {title}", total, silent=True) as step:
            yield step.reach
