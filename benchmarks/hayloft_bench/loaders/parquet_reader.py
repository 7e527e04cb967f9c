"""Row groups through a pyarrow dataset: selected columns, read ahead by pyarrow's own threads.

One latency is the trainer's wait for one record batch; it counts as a sample (of many rows) and as a batch.
"""

from __future__ import annotations

import time
from typing import Any

import crc32c
import numpy

from hayloft_bench.loaders.data_sources import key_root, make_source
from hayloft_bench.run.reader_pool import ReadCounts, Run

ROW_GROUPS_AHEAD = 2
"""Row groups that pyarrow reads beside the one in use; its default of 4 is for small ones."""
BATCHES_AHEAD = 16
"""pyarrow's default."""


class RowGroupReader:
    """``items`` are row groups: path, number, rows, the id of the first row, and the CRC32Cs of the embeddings of
    ``checked_rows`` rows, by the id of the first of these rows."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        import pyarrow.dataset
        import pyarrow.fs

        self._datasets: Any = pyarrow.dataset
        self._arguments = arguments
        self._filesystem: Any = pyarrow.fs.LocalFileSystem()
        if arguments["access"]["kind"] != "directory":
            source = make_source(arguments["access"])
            source.open()
            self._filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(source.filesystem()))
        self._expected = {first: crc for item in arguments["items"] for first, crc in item["checks"]}

    def read(self, counts: ReadCounts) -> None:
        begun, rows = time.perf_counter(), 0
        for batch in self._scanner().to_batches():
            latency_s = time.perf_counter() - begun
            counts.sample(latency_s, batch.num_rows * self._arguments["row_bytes"], batch.num_rows)
            counts.batch(latency_s)
            rows += batch.num_rows
            self._compare(batch, counts)
            begun = time.perf_counter()
        requested = sum(item["rows"] for item in self._arguments["items"])
        counts.checked(rows == requested, f"{rows} rows instead of {requested}")
        for first in self._expected:
            counts.checked(False, f"the rows from id {first} on were not received")

    def _scanner(self) -> Any:
        form, root = self._datasets.ParquetFileFormat(), key_root(self._arguments["access"])
        fragments = [
            form.make_fragment(root + item["path"], self._filesystem, row_groups=[item["group"]])
            for item in self._arguments["items"]
        ]
        schema = fragments[0].physical_schema
        dataset = self._datasets.FileSystemDataset(fragments, schema, form, self._filesystem)
        return dataset.scanner(
            columns=list(self._arguments["columns"]),
            batch_size=self._arguments["batch_rows"],
            batch_readahead=BATCHES_AHEAD,
            fragment_readahead=ROW_GROUPS_AHEAD,
        )

    def _compare(self, batch: Any, counts: ReadCounts) -> None:
        """The rows of a batch are consecutive, and no block of checked rows crosses into the next batch."""
        if not batch.num_rows:
            return
        first, size = batch.column("id")[0].as_py(), self._arguments["checked_rows"]
        starts = [start for start in range(first, first + batch.num_rows, size) if start in self._expected]
        if not starts:
            return
        ids = batch.column("id").to_numpy()
        values = batch.column("embedding").flatten().to_numpy()
        width = len(values) // batch.num_rows
        for start in starts:
            rows = slice(start - first, start - first + size)
            in_order = numpy.array_equal(ids[rows], numpy.arange(start, start + size))
            crc = crc32c.crc32c(values[rows.start * width : rows.stop * width].data)
            counts.checked(in_order and crc == self._expected.pop(start), f"the rows from id {start} on are wrong")


def load(arguments: dict[str, Any]) -> Run:
    return RowGroupReader(arguments).read
