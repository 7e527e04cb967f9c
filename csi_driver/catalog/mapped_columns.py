"""Columns that are written to the disk part by part, and then read in place as Arrow arrays."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc


class _GrowingBuffer:
    """A file without a name."""

    def __init__(self, directory: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed by ``close``
        self._mapped: mmap.mmap | None = None
        self.size_bytes = 0

    def add(self, piece: Any) -> None:
        self._file.write(piece)
        self.size_bytes += piece.size

    def buffer(self) -> Any:
        """All of it. Nothing is added afterwards."""
        if not self.size_bytes:
            return pa.py_buffer(b"")
        self._file.flush()
        self._mapped = mmap.mmap(self._file.fileno(), self.size_bytes, prot=mmap.PROT_READ)
        return pa.py_buffer(self._mapped)

    def release(self) -> None:
        """The pages leave this process; they stay in the page cache."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._file.close()


class MappedColumns:
    """The columns of a table. Fixed-width ones have one file each, binary ones two, as Arrow lays them out."""

    def __init__(self, directory: Path, schema: Any) -> None:
        """Raises OSError."""
        self._schema = schema
        self._values = [_GrowingBuffer(directory) for _ in schema]
        self._offsets = [
            _GrowingBuffer(directory) if pa.types.is_large_binary(field.type) else None for field in schema
        ]
        self._row_count = 0

    def add(self, rows: Any) -> None:
        """Rows of a table of one chunk, which begins with its buffers, with these columns and perhaps others. Raises
        OSError."""
        if not rows.num_rows:
            return
        for field, values, offsets in zip(self._schema, self._values, self._offsets, strict=True):
            (array,) = rows.column(field.name).chunks
            if offsets is None:
                values.add(array.buffers()[1].slice(0, len(array) * field.type.bit_width // 8))
                continue
            ends = pa.Array.from_buffers(pa.int64(), len(array) + 1, [None, array.buffers()[1]])
            first, last = ends[0].as_py(), ends[len(array)].as_py()
            moved = pc.add(ends, values.size_bytes - first)
            if self._row_count:
                moved = moved[1:]
            offsets.add(moved.buffers()[1].slice(moved.offset * 8, len(moved) * 8))
            if last > first:
                values.add(array.buffers()[2].slice(first, last - first))
        self._row_count += rows.num_rows

    def table(self) -> Any:
        """All rows, each column one chunk. Nothing is added afterwards."""
        columns = []
        for field, values, offsets in zip(self._schema, self._values, self._offsets, strict=True):
            buffers = [None, values.buffer()] if offsets is None else [None, offsets.buffer(), values.buffer()]
            columns.append(pa.Array.from_buffers(field.type, self._row_count, buffers))
        return pa.table(columns, schema=self._schema)

    def release(self) -> None:
        """Takes the pages that were read so far out of this process's memory; the next access maps them again."""
        for each in (*self._values, *self._offsets):
            if each is not None:
                each.release()

    def close(self) -> None:
        """Frees the space on the disk once no array of ``table`` is left."""
        for each in (*self._values, *self._offsets):
            if each is not None:
                each.close()
