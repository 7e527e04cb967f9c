"""Tables in Parquet, read by pyarrow: some of the columns, row groups in shuffled order, small and giant ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import crc32c

from hayloft_bench.results.model import Accelerator, DatasetFile, Share, Sizes
from hayloft_bench.workloads import dataset_writer
from hayloft_bench.workloads.content import content
from hayloft_bench.workloads.sharding import readers_of, scaled_count, shuffled, split

FLOATS = 512
EMBEDDING_BYTES = FLOATS * 4
THUMBNAIL_BYTES = 2048
"""The column that training does not read; it is half of the file."""
PROJECTION = ("id", "label", "embedding")
PROJECTED_ROW_BYTES = 8 + 4 + EMBEDDING_BYTES
ROW_BYTES = PROJECTED_ROW_BYTES + THUMBNAIL_BYTES
SMALL_GROUP_ROWS = 1_024
FILE_ROWS = 32 * SMALL_GROUP_ROWS
"""135 MB: in ``small`` 32 row groups of 4.2 MB, in ``giant`` a single one."""
CHECKED_ROWS = 64
"""Rows whose embeddings are compared together."""
CHECK_EVERY = 32
"""One of 32 blocks of rows is compared, and at least one of every row group."""


@dataclass(frozen=True, slots=True)
class _Plan:
    files: int
    """Of each kind."""
    rows: int
    group_rows: dict[str, int]


class Parquet:
    """8 files with small and 8 with giant row groups at scale 1. Row groups are shuffled and split among the readers,
    and read through a pyarrow dataset in record batches of at most 1,024 rows; pyarrow reads ahead by itself."""

    name: ClassVar[str] = "parquet"
    title: ClassVar[str] = "Parquet by pyarrow, half of the columns, row groups of 1,024 rows and of a file"
    readers: ClassVar[int] = 2
    reads_whole_files: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("pyarrow",)
    access: ClassVar[frozenset[str]] = frozenset({"directory", "s3fs", "obstore"})
    """The clients that have a file system for pyarrow; boto3 and s3torchconnector have none."""
    accelerator: ClassVar[Accelerator | None] = None

    def make(self, directory: Path, sizes: Sizes) -> list[DatasetFile]:
        import pyarrow

        plan = _planned(sizes)
        identity = {
            "workload": self.name,
            "seed": sizes.seed,
            "rows": plan.rows,
            "group_rows": plan.group_rows,
            "pyarrow": pyarrow.__version__,  # a file names the version that wrote it
        }
        paths = [f"{kind}/part-{number:04d}.parquet" for kind in plan.group_rows for number in range(plan.files)]
        return dataset_writer.make(directory, identity, paths, partial(_table, sizes.seed, plan))

    def dataset_bytes(self, sizes: Sizes) -> int:
        plan = _planned(sizes)
        return 2 * plan.files * plan.rows * ROW_BYTES

    def shares(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int, ranks: int, rank: int) -> list[Share]:
        plan = _planned(sizes)
        groups = [
            (file.path, number, first, min(rows, plan.rows - first))
            for file in files
            for rows in [plan.group_rows[file.path.split("/")[0]]]
            for number, first in enumerate(range(0, plan.rows, rows))
        ]
        settings = {
            "columns": PROJECTION,
            "batch_rows": SMALL_GROUP_ROWS,
            "row_bytes": PROJECTED_ROW_BYTES,
            "checked_rows": CHECKED_ROWS,
        }
        return [
            Share(
                "hayloft_bench.loaders.parquet_reader:load",
                {**settings, "items": [_item(sizes.seed, epoch, g) for g in items]},
            )
            for items in split(shuffled(groups, sizes.seed, epoch), readers_of(sizes, self.readers), ranks, rank)
        ]

    def needed_bytes(self, files: Sequence[DatasetFile], sizes: Sizes, epoch: int) -> int:
        """The values of the selected columns, without footers and page headers (less than 0.1 %)."""
        return len(files) * _planned(sizes).rows * PROJECTED_ROW_BYTES


def _planned(sizes: Sizes) -> _Plan:
    count, shrink = scaled_count(8, 2, sizes.scale)
    rows = max(2, round(FILE_ROWS * shrink / CHECKED_ROWS)) * CHECKED_ROWS
    small = min(SMALL_GROUP_ROWS, rows // 2 // CHECKED_ROWS * CHECKED_ROWS)
    return _Plan(count, rows, {"small": small, "giant": rows})


def first_id(path: str) -> int:
    """The id of a file's first row: ids are unique in the dataset and identify file and row."""
    kind, name = path.split("/")
    return (int(name[5:9]) * 2 + (kind == "giant")) << 32


def _item(seed: int, epoch: int, group: tuple[str, int, int, int]) -> dict[str, Any]:
    """The reader's description of a row group, with the CRC32Cs of the embeddings to compare, by the id of their
    first row."""
    path, number, first, rows = group
    starts = range(first, first + rows - CHECKED_ROWS + 1, CHECKED_ROWS)
    chosen = starts[(epoch + number) % min(CHECK_EVERY, len(starts)) :: CHECK_EVERY]
    checks = [
        (
            first_id(path) + row,
            crc32c.crc32c(content(seed, path, row * EMBEDDING_BYTES, (row + CHECKED_ROWS) * EMBEDDING_BYTES)),
        )
        for row in chosen
    ]
    return {"path": path, "group": number, "rows": rows, "first_id": first_id(path) + first, "checks": checks}


def _table(seed: int, plan: _Plan, path: str) -> Iterable[memoryview]:
    import numpy
    import pyarrow as pa
    import pyarrow.parquet as pq

    group_rows = plan.group_rows[path.split("/")[0]]
    sink = pa.BufferOutputStream()
    schema = pa.schema(
        {
            "id": pa.int64(),
            "label": pa.int32(),
            "embedding": pa.list_(pa.float32(), FLOATS),
            "thumbnail": pa.binary(THUMBNAIL_BYTES),
        }
    )
    with pq.ParquetWriter(sink, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for start in range(0, plan.rows, group_rows):
            rows = min(group_rows, plan.rows - start)
            embeddings = content(seed, path, start * EMBEDDING_BYTES, (start + rows) * EMBEDDING_BYTES)
            pixels = content(seed, path + "/thumbnail", start * THUMBNAIL_BYTES, (start + rows) * THUMBNAIL_BYTES)
            floats = pa.Array.from_buffers(pa.float32(), rows * FLOATS, [None, pa.py_buffer(embeddings)])
            columns = [
                pa.array(numpy.arange(start, start + rows, dtype=numpy.int64) + first_id(path)),
                pa.array(numpy.arange(start, start + rows, dtype=numpy.int32) % 1000),
                pa.FixedSizeListArray.from_arrays(floats, FLOATS),
                pa.Array.from_buffers(pa.binary(THUMBNAIL_BYTES), rows, [None, pa.py_buffer(pixels)]),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=group_rows)
    yield memoryview(sink.getvalue())
