"""Cosmological volumes, one file per sample, as MLPerf Storage's CosmoFlow reads them."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Accelerator
from hayloft_bench.workloads.whole_files import WholeFiles

COSMOFLOW_H100 = Accelerator("cosmoflow-h100", samples_per_batch=1, compute_s=0.0035, threshold=0.70)
"""2.83 MB ÷ 0.0035 s = 808 MB/s for one H100."""


class CosmoFlow(WholeFiles):
    """Files of 2.83 MB; scale 1 has 900 of them."""

    name: ClassVar[str] = "cosmoflow"
    title: ClassVar[str] = "files of 2.83 MB, shuffled"
    workers: ClassVar[int] = 4
    batch: ClassVar[int] = 1
    full_count: ClassVar[int] = 900
    least_count: ClassVar[int] = 32
    mean_bytes: ClassVar[int] = 2_830_000
    accelerator: ClassVar[Accelerator | None] = COSMOFLOW_H100

    def path(self, number: int) -> str:
        return f"train/{number:06d}.tfrecord"
