"""The dataset of the comparison: one long file, a few shards, and many small files; seeded and not compressible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy

from csi_driver.demo.dataset import DatasetFile

SEED = 2024
PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class BenchDataset:
    """Paths below the root, with their sizes. At scale 1: 1 GiB, 4 shards of 143 MB, 2,400 files of 110 kB."""

    files: tuple[DatasetFile, ...]

    def below(self, folder: str) -> tuple[DatasetFile, ...]:
        return tuple(file for file in self.files if file.path.startswith(folder + "/"))

    def size_bytes(self, folder: str) -> int:
        return sum(file.size_bytes for file in self.below(folder))


def make(root: Path, scale: float) -> BenchDataset:
    """Writes the files. Digests are left empty: the demonstration and the tests compare bytes, this measures."""
    sizes = {"long/file.bin": max(16 << 20, int(scale * (1 << 30)))}
    sizes |= {f"shards/{number:04d}.tar": max(4 << 20, int(scale * 143_000_000)) for number in range(4)}
    generator = numpy.random.default_rng(SEED)
    for number in range(max(80, int(scale * 2400))):
        size_bytes = max(8_000, int(generator.normal(110_000, 35_000)))
        sizes[f"small/{number // 400:03d}/{number:06d}.jpg"] = size_bytes
    for path, size_bytes in sizes.items():
        _write(root / path, size_bytes, generator)
    return BenchDataset(tuple(DatasetFile(path, size_bytes, "") for path, size_bytes in sorted(sizes.items())))


def _write(where: Path, size_bytes: int, generator: numpy.random.Generator) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    with where.open("wb") as file:
        for start in range(0, size_bytes, PIECE_BYTES):
            length = min(PIECE_BYTES, size_bytes - start)
            file.write(generator.bit_generator.random_raw(-(-length // 8)).tobytes()[:length])
