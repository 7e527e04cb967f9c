"""Photographs of Open Images, one file each, as MLPerf Storage's RetinaNet reads them."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Accelerator
from hayloft_bench.workloads.whole_files import WholeFiles

RETINANET_B200 = Accelerator("retinanet-b200", samples_per_batch=24, compute_s=0.04755, threshold=0.85)
"""322,957 B × 24 ÷ 0.04755 s = 163 MB/s, 505 files per second, from one B200."""


class RetinaNet(WholeFiles):
    """1.17 million JPEG files of 322,957 B; scale 1 has 8,000 of them."""

    name: ClassVar[str] = "retinanet"
    title: ClassVar[str] = "files of 323 kB, shuffled, many workers"
    batch: ClassVar[int] = 24
    full_count: ClassVar[int] = 8_000
    least_count: ClassVar[int] = 48
    mean_bytes: ClassVar[int] = 322_957
    accelerator: ClassVar[Accelerator | None] = RETINANET_B200

    def path(self, number: int) -> str:
        return f"train/{number // 1000:04d}/{number:07d}.jpg"
