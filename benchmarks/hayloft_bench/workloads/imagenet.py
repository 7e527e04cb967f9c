"""Many small files in class folders, as torchvision's ImageFolder reads ImageNet."""

from __future__ import annotations

from typing import ClassVar

from hayloft_bench.results.model import Accelerator
from hayloft_bench.workloads.whole_files import WholeFiles

RESNET50_H100 = Accelerator("resnet50-h100", samples_per_batch=400, compute_s=0.224, threshold=0.90)
"""MLPerf Storage's emulation of ResNet-50 on one H100: 114,660 B × 400 ÷ 0.224 s = 205 MB/s."""


class ImageNet(WholeFiles):
    """ImageNet's training set: 1,281,167 JPEG files of 110 kB on average. Scale 1 is a 64th of it, scale 64 all."""

    name: ClassVar[str] = "imagenet"
    title: ClassVar[str] = "files of 110 kB, shuffled, many workers"
    batch: ClassVar[int] = 64
    full_count: ClassVar[int] = 20_000
    least_count: ClassVar[int] = 64
    mean_bytes: ClassVar[int] = 110_000
    sigma_bytes: ClassVar[int] = 35_000
    accelerator: ClassVar[Accelerator | None] = RESNET50_H100

    def path(self, number: int) -> str:
        return f"class-{number % 1000:03d}/{number:07d}.JPEG"
