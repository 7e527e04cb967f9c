"""Row groups through a pyarrow dataset: columns projected, read ahead by pyarrow's own threads.

One latency is that of one record batch, as the trainer waits for it; it stands as sample (of many rows) and as batch.
"""

from __future__ import annotations

import time
from typing import Any

import crc32c
import numpy

from hayloft_bench.loaders.sources import key_root, make_source
from hayloft_bench.run.reader_pool import ReadCounts, Run

ROW_GROUPS_AHEAD = 2
"""Row groups that pyarrow reads beside the one that is used; its default of 4 is for small ones."""
BATCHES_AHEAD = 16
"""pyarrow's default."""


class RowGroups:
    """``items`` are row groups: path, number, rows, the id of the first row, and the CRC32C of the embeddings of
    ``checked_rows`` rows by the id of the first of them."""

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

    def read(self, tally: ReadCounts) -> None:
        """All of them."""
        begun, rows = time.perf_counter(), 0
        for batch in self._scanner().to_batches():
            latency_s = time.perf_counter() - begun
            tally.sample(latency_s, batch.num_rows * self._arguments["row_bytes"], batch.num_rows)
            tally.batch(latency_s)
            rows += batch.num_rows
            self._compare(batch, tally)
            begun = time.perf_counter()
        wanted = sum(item["rows"] for item in self._arguments["items"])
        tally.checked(rows == wanted, f"{rows} rows instead of {wanted}")
        for first in self._expected:
            tally.checked(False, f"the rows from id {first} on never came")

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

    def _compare(self, batch: Any, tally: ReadCounts) -> None:
        """Rows of a batch follow each other, and blocks of checked rows do not cross from one batch to the next."""
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
            tally.checked(in_order and crc == self._expected.pop(start), f"the rows from id {start} on are others")


def load(arguments: dict[str, Any]) -> Run:
    """The job."""
    return RowGroups(arguments).read
