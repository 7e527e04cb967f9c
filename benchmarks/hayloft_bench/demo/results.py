"""The rows of ``demo-results.json`` and what is computed from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hayloft_bench.demo.crew import Reading

Phase = Literal["cold", "warm"]


@dataclass(frozen=True, slots=True)
class Row:
    """One epoch of one workload from one target. ``bytes`` were read by the training loop; ``origin_bytes`` were sent
    by the store meanwhile, by the store's own counter, whatever the target."""

    workload: str
    target: str
    epoch: int
    phase: Phase
    bytes: int
    samples: int
    seconds: float
    p50_ms: float
    p99_ms: float
    origin_bytes: int

    @classmethod
    def of(cls, workload: str, target: str, epoch: int, reading: Reading, origin_bytes: int) -> Row:
        """Epoch 1 is the cold one."""
        return cls(
            workload=workload,
            target=target,
            epoch=epoch,
            phase="cold" if epoch == 1 else "warm",
            bytes=reading.read_bytes,
            samples=reading.samples,
            seconds=round(reading.seconds, 6),
            p50_ms=round(reading.percentile_ms(50), 4),
            p99_ms=round(reading.percentile_ms(99), 4),
            origin_bytes=origin_bytes,
        )

    @property
    def bytes_per_s(self) -> float:
        """0 if the clock saw no time pass."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def samples_per_s(self) -> float:
        """0 if the clock saw no time pass."""
        return self.samples / self.seconds if self.seconds else 0.0


class Results:
    """All rows of a run."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows = list(rows)

    def of(self, workload: str, target: str, phase: Phase) -> list[Row]:
        """In the order of the epochs."""
        return [row for row in self.rows if (row.workload, row.target, row.phase) == (workload, target, phase)]

    def rate(self, workload: str, target: str, phase: Phase) -> float:
        """Median bytes per second of the epochs of a phase; 0 without rows."""
        rows = self.of(workload, target, phase)
        return statistics.median(row.bytes_per_s for row in rows) if rows else 0.0

    def times(self, workload: str, target: str, phase: Phase, other: str) -> float:
        """How many times as fast as another target in the same phase; 0 if that is not known."""
        base = self.rate(workload, other, phase)
        return self.rate(workload, target, phase) / base if base else 0.0

    def origin_share(self, target: str, phase: Phase) -> float:
        """Bytes from the store ÷ bytes read, over all workloads; per epoch, since both are sums over them."""
        rows = [row for row in self.rows if (row.target, row.phase) == (target, phase)]
        read_bytes = sum(row.bytes for row in rows)
        return sum(row.origin_bytes for row in rows) / read_bytes if read_bytes else 0.0

    def seconds(self, target: str, phase: Phase) -> float:
        """Time of one epoch over all workloads (the mean of the warm ones)."""
        rows = [row for row in self.rows if (row.target, row.phase) == (target, phase)]
        epochs = len({row.epoch for row in rows})
        return sum(row.seconds for row in rows) / epochs if epochs else 0.0

    def write_json(self, path: Path) -> None:
        """A list of objects, one per row."""
        path.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")
