"""Large volumes of medical images, one NumPy file per sample, as MLPerf Storage's 3D U-Net reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from hayloft_bench.loaders.npy import header
from hayloft_bench.results.model import Accelerator
from hayloft_bench.workloads.content import pieces
from hayloft_bench.workloads.whole_files import WholeFiles

UNET3D_H100 = Accelerator("unet3d-h100", samples_per_batch=7, compute_s=0.323, threshold=0.90)
"""146.6 MB × 7 ÷ 0.323 s = 3.18 GB/s for one H100."""


class UNet3D(WholeFiles):
    """Files of 146.6 MB (standard deviation 68.3 MB), loaded by ``numpy.load``; scale 1 has 16 of them.

    MLPerf Storage has ``.npz``; these are ``.npy``: the same bytes without the checksums of a ZIP archive, which would
    measure zlib."""

    name: ClassVar[str] = "unet3d"
    title: ClassVar[str] = "files of 147 MB, shuffled, numpy.load"
    workers: ClassVar[int] = 2
    batch: ClassVar[int] = 1
    full_count: ClassVar[int] = 16
    least_count: ClassVar[int] = 14
    mean_bytes: ClassVar[int] = 146_600_628
    sigma_bytes: ClassVar[int] = 68_341_808
    form: ClassVar[str] = "npy"
    accelerator: ClassVar[Accelerator | None] = UNET3D_H100

    def path(self, number: int) -> str:
        return f"train/case_{number:05d}.npy"

    def _content(self, seed: int, planned: dict[str, int], path: str) -> Iterable[memoryview | bytes]:
        head = header(planned[path])
        yield head
        yield from pieces(seed, path, planned[path] - len(head))
