"""The dataset of the demonstration: images as single files, the same kind of images in tar shards, and Parquet.

Every byte comes from one seed, so that two runs read the same dataset, and is as good as random, so that no store,
disk or file system can compress it.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hayloft_bench.demo.extra import numpy

IMAGE_MEAN_BYTES = 110_000
"""The mean size of an ImageNet JPEG."""
IMAGE_SIGMA_BYTES = 35_000
IMAGE_LEAST_BYTES = 8_000
IMAGES = 2_500
IMAGES_PER_FOLDER = 250
SHARDS = 2
SHARD_IMAGES = 1_300
"""1,300 images of 110 kB make a shard of 143 MB, the size of a resnet50 TFRecord with its 1,251 records."""
TABLES = 4
ROW_GROUPS = 8
ROWS_PER_GROUP = 720
EMBEDDING_FLOATS = 1_024
THUMBNAIL_BYTES = 2_048
PROJECTION = ("id", "label", "embedding")
"""The columns that training reads; ``thumbnail`` is left where it is."""

_EPOCH_2024 = 1_704_067_200
"""A fixed mtime of the members of a tar, in seconds: the same seed gives the same bytes on another day."""


@dataclass(frozen=True, slots=True)
class DatasetFile:
    """One file: its path below the dataset's root, which is its key below the prefix, too."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """How much of everything there is."""

    seed: int
    images: int
    shards: int
    shard_images: int
    tables: int
    row_groups: int

    @classmethod
    def scaled(cls, scale: float, seed: int = 2024) -> DatasetPlan:
        """About 700 MB times ``scale``; at least a little of everything."""
        return cls(
            seed=seed,
            images=max(8, round(IMAGES * scale)),
            shards=SHARDS if scale <= 1 else round(SHARDS * scale),
            shard_images=max(4, round(SHARD_IMAGES * min(scale, 1.0))),
            tables=TABLES if scale <= 1 else round(TABLES * scale),
            row_groups=max(1, round(ROW_GROUPS * min(scale, 1.0))),
        )


@dataclass(frozen=True, slots=True)
class MadeDataset:
    """What was made, sorted by path."""

    plan: DatasetPlan
    files: tuple[DatasetFile, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def below(self, folder: str) -> tuple[DatasetFile, ...]:
        """The files of one workload."""
        return tuple(file for file in self.files if file.path.startswith(folder + "/"))

    def digest(self) -> str:
        """SHA-256 of the whole dataset."""
        return dataset_digest({file.path: file.sha256 for file in self.files})


def dataset_digest(sha256_of: dict[str, str]) -> str:
    """One SHA-256 over the lines ``<sha256>  <path>`` sorted by path: what ``sha256sum`` of everything, hashed once
    more, would give. A missing, additional or wrong file changes it."""
    lines = "".join(f"{sha256_of[path]}  {path}\n" for path in sorted(sha256_of))
    return hashlib.sha256(lines.encode()).hexdigest()


def make_dataset(root: Path, plan: DatasetPlan, advance: Callable[[int], None], threads: int = 2) -> MadeDataset:
    """Writes the files below ``root``; ``advance`` is told the bytes of each finished file, from any thread."""
    jobs: list[Callable[[], DatasetFile]] = []
    for number in range(plan.shards):
        jobs.append(partial(_write, root, f"tar/shard-{number:04d}.tar", partial(_shard, plan, number)))
    for number in range(plan.tables):
        jobs.append(partial(_write, root, f"parquet/part-{number:04d}.parquet", partial(_table, plan, number)))
    for number in range(plan.images):
        path = f"images/class-{number // IMAGES_PER_FOLDER:03d}/{number:06d}.jpg"
        jobs.append(partial(_write, root, path, partial(_image, plan, "image", number)))

    def made(job: Callable[[], DatasetFile]) -> DatasetFile:
        file = job()
        advance(file.size_bytes)
        return file

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(made, job) for job in jobs]
        try:
            files = [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)
    return MadeDataset(plan, tuple(sorted(files, key=lambda file: file.path)))


def _write(root: Path, path: str, content: Callable[[], bytes | memoryview]) -> DatasetFile:
    payload = content()
    where = root / path
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_bytes(payload)
    return DatasetFile(path, len(payload), hashlib.sha256(payload).hexdigest())


def _generator(plan: DatasetPlan, kind: str, number: int) -> Any:
    spawn = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "little")
    return numpy().random.default_rng([plan.seed, spawn, number])


def _noise(generator: Any, size_bytes: int) -> bytes:
    # The generator's raw 64-bit words: the fastest way to bytes that cannot be compressed.
    words: bytes = generator.bit_generator.random_raw(-(-size_bytes // 8)).tobytes()
    return words[:size_bytes]


def _image(plan: DatasetPlan, kind: str, number: int) -> bytes:
    """The size of a photograph between the first and the last two bytes of a JPEG; nobody decodes it."""
    generator = _generator(plan, kind, number)
    size_bytes = max(IMAGE_LEAST_BYTES, int(generator.normal(IMAGE_MEAN_BYTES, IMAGE_SIGMA_BYTES)))
    return b"\xff\xd8" + _noise(generator, size_bytes - 4) + b"\xff\xd9"


def _shard(plan: DatasetPlan, number: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image in range(plan.shard_images):
            member = number * plan.shard_images + image
            payload = _image(plan, "member", member)
            header = tarfile.TarInfo(f"{member:08d}.jpg")
            header.size, header.mtime, header.mode = len(payload), _EPOCH_2024, 0o644
            tar.addfile(header, io.BytesIO(payload))
    return buffer.getvalue()


def _table(plan: DatasetPlan, number: int) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, np = ROWS_PER_GROUP, numpy()
    sink = pa.BufferOutputStream()
    writer = None
    for group in range(plan.row_groups):
        generator = _generator(plan, "table", number * 10_000 + group)
        floats = pa.array(generator.random(rows * EMBEDDING_FLOATS, dtype=np.float32))
        offsets = np.arange(rows + 1, dtype=np.int32) * THUMBNAIL_BYTES
        noise = pa.py_buffer(_noise(generator, rows * THUMBNAIL_BYTES))
        columns = {
            "id": pa.array(np.arange(rows, dtype=np.int64) + (number * plan.row_groups + group) * rows),
            "label": pa.array(generator.integers(0, 1000, rows, dtype=np.int32)),
            "embedding": pa.FixedSizeListArray.from_arrays(floats, EMBEDDING_FLOATS),
            "thumbnail": pa.BinaryArray.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), noise]),
        }
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(sink, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table, row_group_size=rows)
    if writer is not None:
        writer.close()
    return memoryview(sink.getvalue())
