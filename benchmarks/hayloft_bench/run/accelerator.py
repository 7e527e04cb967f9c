"""Accelerators, emulated as MLPerf Storage does it: computing is a sleep after every batch, while the loader's workers
continue to read. The figures are *MLPerf-Storage-style*; they are not MLPerf results.

One emulated accelerator is one reader process with a loader and workers of its own. Its utilisation is the time that
it computed ÷ the time of the run without the wait for the first batch, as MLPerf Storage leaves out the first step.
The search looks for the largest number of accelerators that are all fed: the utilisation stays above the model's
threshold.

A sleep needs no processor, the workers do. Where the machine has no idle time left, a low utilisation says more about
its processors than about the storage. Each trial therefore records the idle share of the machine, and a figure has to
be compared with that of plain local files on the same machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from hayloft_bench.results.model import Accelerator, DatasetFile, Reading, Share, Sizes, Workload

LEAST_COMPUTE_S = 3.0
"""An accelerator gets batches for so much computing: start and end would dominate shorter runs."""
LEAST_BATCHES = 6
MOST_ACCELERATORS = 64
STARVED_IDLE = 0.05
"""With less idle time of all processors together, the emulation itself is short of them."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a trainer computes after a batch. Without an accelerator: not at all."""

    compute_s: float = 0.0
    samples_per_batch: int = 1

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Pace:
        """From the arguments of a reader process."""
        return cls(**arguments.get("accelerator", {}))

    def compute(self, samples: int, *, since: float) -> None:
        """Sleeps until ``since`` (of time.perf_counter) plus the time for ``samples``: a short last batch takes a part
        of the time of a full one."""
        if self.compute_s:
            left_s = since + self.compute_s * samples / self.samples_per_batch - time.perf_counter()
            time.sleep(max(0.0, left_s))


def emulating(share: Share, accelerator: Accelerator) -> Share:
    """The same share, read by an accelerator: in its batches, at its pace."""
    emulation = {"compute_s": accelerator.compute_s, "samples_per_batch": accelerator.samples_per_batch}
    return replace(
        share, arguments={**share.arguments, "batch": accelerator.samples_per_batch, "accelerator": emulation}
    )


def accelerator_shares(
    workload: Workload,
    files: Sequence[DatasetFile],
    sizes: Sizes,
    accelerators: int,
    *,
    epoch: int = 0,
    ranks: int = 1,
    rank: int = 0,
) -> list[Share]:
    """One share for each accelerator of this node: complete epochs, joined and then divided, as many as it takes until
    each has enough to compute (``LEAST_COMPUTE_S`` and ``LEAST_BATCHES``). There may be more accelerators than files:
    they read different epochs then. Raises ValueError if the workload has no accelerator or this node no files."""
    if workload.accelerator is None:
        raise ValueError(f"{workload.name} has no accelerator to emulate")
    model, alone = workload.accelerator, replace(sizes, readers=1)
    batches = math.ceil(max(LEAST_BATCHES, LEAST_COMPUTE_S / model.compute_s))
    items: list[Any] = []
    while True:
        dealt = workload.shares(files, alone, epoch, ranks, rank)
        if not dealt:
            raise ValueError(f"{len(files)} files are too few for {ranks} nodes")
        (share,) = dealt
        items += share.arguments["items"]
        fewest = len(items) // accelerators * int(share.arguments.get("samples_per_item", 1))
        if fewest >= batches * model.samples_per_batch:
            break
        epoch += 1
    hands = [items[number::accelerators] for number in range(accelerators)]
    return [emulating(replace(share, arguments={**share.arguments, "items": hand}), model) for hand in hands]


def utilisation(reading: Reading, accelerator: Accelerator) -> float:
    """The mean over the accelerators of compute time ÷ time of the run without the wait for the first batch, each at
    most 1."""
    per_sample_s = accelerator.compute_s / accelerator.samples_per_batch
    shares = [
        min(1.0, samples * per_sample_s / steady_s) if steady_s > 0 else 0.0 for steady_s, samples in reading.steady
    ]
    return statistics.fmean(shares) if shares else 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One run with a number of accelerators."""

    accelerators: int
    utilisation: float
    idle: float
    """Idle share of all processors of the machine meanwhile, 0 to 1."""

    @property
    def is_starved(self) -> bool:
        """The machine had no processor time left: more accelerators cannot be emulated here, fed or not."""
        return self.idle < STARVED_IDLE


@dataclass(frozen=True, slots=True)
class Found:
    """The result of ``search``."""

    accelerators: int
    """0: not even one is fed."""
    limit: Literal["storage", "processors", "search"]
    """Why the next number is not fed. ``processors``: the machine had no processor time left in the first trial that
    failed, so the number is a lower bound for the storage. ``search``: the largest number of the search is fed."""
    trials: tuple[Trial, ...]


class Measure(Protocol):
    """Runs one trial."""

    def __call__(self, accelerators: int) -> Trial: ...


def search(measure: Measure, threshold: float, most: int = MOST_ACCELERATORS) -> Found:
    """The largest number of accelerators, up to ``most``, whose utilisation is at least ``threshold``: doubled until
    one fails, then bisected. If a number is fed, every smaller one is assumed to be."""
    trials: list[Trial] = []

    def is_fed(accelerators: int) -> bool:
        trials.append(measure(accelerators))
        return trials[-1].utilisation >= threshold

    fed, failed = 0, None
    while fed < most and failed is None:
        tried_next = min(most, max(1, 2 * fed))
        if is_fed(tried_next):
            fed = tried_next
        else:
            failed = tried_next
    while failed is not None and failed - fed > 1:
        middle = (fed + failed) // 2
        if is_fed(middle):
            fed = middle
        else:
            failed = middle
    if failed is None:
        return Found(fed, "search", tuple(trials))
    boundary = next(trial for trial in trials if trial.accelerators == failed)
    return Found(fed, "processors" if boundary.is_starved else "storage", tuple(trials))


def tried(accelerators: int, accelerator: Accelerator, read: Callable[[], Reading]) -> Trial:
    """Runs ``read``, which reads the shares of the accelerators, and measures the idle time of the processors."""
    before = _processor_ticks()
    reading = read()
    idle, total = (after - start for after, start in zip(_processor_ticks(), before, strict=True))
    return Trial(accelerators, utilisation(reading, accelerator), idle / total if total else 1.0)


def _processor_ticks() -> tuple[int, int]:
    """(idle, all), of all processors since boot. Waiting for a disk is idle time."""
    values = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return values[3] + values[4], sum(values)
