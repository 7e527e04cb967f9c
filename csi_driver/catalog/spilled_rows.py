"""The collected objects of a long listing, on the disk: batches as they were listed, then parts in the order of paths.

All files are without a name, so a process that is killed leaves none.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.model.errors import BudgetExceeded

SAMPLE_EVERY = 64
"""So many rows from one sample to the next: parts of half a million rows differ by a few per cent in size."""

_ROWS = pa.schema(
    [
        ("directory", pa.int32()),
        ("name", pa.large_binary()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("etag", pa.large_binary()),
        ("renamed", pa.int32()),
    ]
)

Place = tuple[int, bytes]
"""Rank of the directory, and name: rows are sorted by it."""


class BatchFile:
    """Record batches that are written one after the other, and read in the same order, as often as is wanted."""

    def __init__(self, directory: Path, schema: Any) -> None:
        """Raises OSError."""
        self._file: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed by ``close``
        self.schema = schema
        self._writer: Any = None

    def write(self, batches: Sequence[Any]) -> None:
        """Raises OSError."""
        if self._writer is None:
            self._file.truncate(0)
            self._file.seek(0)
            self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), self.schema)
        for batch in batches:
            self._writer.write_batch(batch)

    def read(self) -> Iterator[Any]:
        """No further batch is added afterwards: a later ``write`` begins the file anew. Raises OSError."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._file.flush()
        self._file.seek(0)
        if self._file.read(1):
            self._file.seek(0)
            yield from pa.ipc.open_stream(pa.PythonFile(self._file, "r"))

    def close(self) -> None:
        """Frees the space on the disk."""
        with contextlib.suppress(OSError):
            self._file.close()


MOST_OF_FREE = 0.25
"""Of the free bytes of the disk. Parts, columns and the manifest take as much again: half of it in all."""


class SpilledRows:
    """Batches in the order of the listing. Dictionaries of directories and samples stay in memory."""

    def __init__(self, directory: Path, most_bytes: int | None = None) -> None:
        """``directory``: on the disk that may be used, for ``most_bytes`` of batches and ``MOST_OF_FREE``. Nothing is
        written yet."""
        self._directory, self._most_bytes = directory, most_bytes
        self._written_bytes = 0
        self._file: BatchFile | None = None
        self.dictionaries: list[Any] = []
        """Each of some batches, one after the other."""
        self._batch_counts: list[int] = []
        """For each dictionary."""
        self._samples: list[tuple[Any, Any]] = []
        self.row_count = 0

    def add(self, batches: Sequence[Any]) -> None:
        """Takes the batches of a ``PageCollector``. Raises OSError, BudgetExceeded."""
        if not batches:
            return
        # One dictionary for all: of objects in no order, each batch names most of the directories.
        rows = pa.Table.from_batches(batches).unify_dictionaries()
        self.dictionaries.append(rows.column("directory").chunk(0).dictionary)
        self._batch_counts.append(len(batches))
        plain = [self._plain(batch) for batch in rows.to_batches()]
        self._require_space(sum(batch.nbytes for batch in plain))
        if self._file is None:
            self._file = BatchFile(self._directory, _ROWS)
        self._file.write(plain)

    def _plain(self, batch: Any) -> Any:
        """The batch with the codes of its dictionary. Takes samples of it."""
        codes = batch.column("directory").indices
        every = pa.array(range(0, batch.num_rows, SAMPLE_EVERY), pa.int64())
        self._samples.append((codes.take(every), batch.column("name").take(every)))
        self.row_count += batch.num_rows
        return pa.RecordBatch.from_arrays([codes, *(batch.column(name) for name in _ROWS.names[1:])], schema=_ROWS)

    def _require_space(self, count_bytes: int) -> None:
        """A listing is a tenant's, and the disk is that of the node: a store without end must not fill it."""
        found = os.statvfs(self._directory)
        free_bytes = found.f_bavail * found.f_frsize + self._written_bytes
        self._written_bytes += count_bytes
        if self._most_bytes is not None and self._written_bytes > self._most_bytes:
            limit = f"{self._most_bytes} bytes for one listing"
        elif self._written_bytes > free_bytes * MOST_OF_FREE:
            limit = f"a quarter of the {free_bytes} free bytes of that disk"
        else:
            return
        raise BudgetExceeded(
            f"the list of the dataset's objects needs more of the disk of the manifests than it may have, {limit}; "
            "name a longer prefix, or have the operator give it more"
        )

    def parts(self, rows_of: Sequence[Any], ranks: Any, part_rows: int) -> list[BatchFile]:
        """The same rows with rank and row of their directory, in parts: all places of one part are below those of the
        next; unsorted within a part. ``rows_of``: for each dictionary, the rows of its directories; ``ranks``: the rank
        of each row of a directory. The batches are gone afterwards. Raises OSError."""
        rows_of = [rows for rows, count in zip(rows_of, self._batch_counts, strict=True) for _ in range(count)]
        edges = self._edges(rows_of, ranks, part_rows)
        schema = pa.schema([("directory", pa.int32()), ("rank", pa.int32()), *list(_ROWS)[1:]])
        parts = [BatchFile(self._directory, schema) for _ in range(len(edges) + 1)]
        written = () if self._file is None else self._file.read()
        for batch, of_dictionary in zip(written, rows_of, strict=True):
            own = of_dictionary.take(batch.column("directory"))
            columns = [own, ranks.take(own), *(batch.column(name) for name in _ROWS.names[1:])]
            rows = pa.RecordBatch.from_arrays(columns, schema=schema)
            rows = rows.take(pc.sort_indices(rows, sort_keys=[("rank", "ascending"), ("name", "ascending")]))
            cuts = [0, *(position_of(rows, edge) for edge in edges), rows.num_rows]
            for part, start, stop in zip(parts, cuts[:-1], cuts[1:], strict=True):
                if start < stop:
                    part.write([rows.slice(start, stop - start)])
        self.close()
        return parts

    def _edges(self, rows_of: Sequence[Any], ranks: Any, part_rows: int) -> list[Place]:
        """The first place of each part but the first one."""
        directories = pa.concat_arrays(
            [rows.take(indices) for rows, (indices, _) in zip(rows_of, self._samples, strict=True)]
        )
        samples = pa.table(
            {"rank": ranks.take(directories), "name": pa.concat_arrays([names for _, names in self._samples])}
        )
        samples = samples.take(pc.sort_indices(samples, sort_keys=[("rank", "ascending"), ("name", "ascending")]))
        step = max(1, part_rows // SAMPLE_EVERY)
        chosen = samples.take(pa.array(range(step, samples.num_rows, step), pa.int64()))
        places = zip(chosen.column("rank").to_pylist(), chosen.column("name").to_pylist(), strict=True)
        return sorted(set(places))

    def close(self) -> None:
        """Frees the space on the disk."""
        if self._file is not None:
            self._file.close()


def position_of(rows: Any, place: Place) -> int:
    """Where the place is, or would be, in sorted rows."""
    rank, name = rows.column("rank"), rows.column("name")
    return bisect_left(range(rows.num_rows), place, key=lambda row: (rank[row].as_py(), name[row].as_py()))
