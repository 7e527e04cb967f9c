"""How training reads: what one reader process does with its share of an epoch, and how an epoch is shared out.

``images``, ``tar``, ``parquet`` and ``digests`` are jobs for ``reader_process.py``: given the share of one process
they return what is to be run when the clock starts.
"""

from __future__ import annotations

import hashlib
import random
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from hayloft_bench.demo.sources import BUFFER_BYTES, make_source

READERS = {"images": 8, "tar": 2, "parquet": 4}
"""Reader processes per workload: image loaders have many workers, and a shard or a table is read by one of them."""

WORKLOADS = tuple(READERS)


class Tally:
    """What one process read. ``progress`` is a slot that the parent watches while the clock runs."""

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self.read_bytes = 0
        self.samples = 0
        self.latencies_s: list[float] = []
        self.digests: dict[str, str] = {}
        self._progress = progress

    def add(self, read_bytes: int, samples: int, latency_s: float) -> None:
        """One thing was read, which took that long."""
        self.read_bytes += read_bytes
        self.samples += samples
        self.latencies_s.append(latency_s)
        if self._progress is not None:
            self._progress(self.read_bytes)

    def answer(self) -> dict[str, Any]:
        """What the parent is told, as JSON has it."""
        return {
            "bytes": self.read_bytes,
            "samples": self.samples,
            "latencies_s": self.latencies_s,
            "digests": self.digests,
        }


Run = Callable[[Tally], None]


def images(share: dict[str, Any]) -> Run:
    """One sample is one file, opened, read and closed."""
    source, paths = make_source(share["source"]), share["items"]

    def run(tally: Tally) -> None:
        for path in paths:
            start = time.perf_counter()
            size_bytes = source.read_whole(path)
            tally.add(size_bytes, 1, time.perf_counter() - start)

    source.prepare()
    return run


def tar(share: dict[str, Any]) -> Run:
    """Shards from front to back; one sample is one member. The bytes are those of the shard, headers and all."""
    source, paths = make_source(share["source"]), share["items"]

    def run(tally: Tally) -> None:
        for path in paths:
            with source.stream(path) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER_BYTES) as shard:
                position, start = 0, time.perf_counter()
                for member in shard:
                    content = shard.extractfile(member)
                    if content is None or len(content.read()) != member.size:
                        raise ValueError(f"{path}: {member.name} is not whole")
                    # A member ends at a full block of 512 bytes.
                    stop = member.offset_data + -(-member.size // 512) * 512
                    now = time.perf_counter()
                    tally.add(stop - position, 1, now - start)
                    position, start = stop, now
                    shard.members.clear()  # type: ignore[attr-defined]  # else it remembers every member

    source.prepare()
    return run


def parquet(share: dict[str, Any]) -> Run:
    """Tables, each with its row groups in any order and only the wanted columns; one sample is one row, one latency
    one row group. The bytes are those of the column chunks in the file."""
    import pyarrow as pa
    import pyarrow.fs
    import pyarrow.parquet as pq

    # The first table that a process reads loads more of pyarrow (0.1 s): that is none of the source's doing.
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1]}), sink)
    pq.ParquetFile(pa.BufferReader(sink.getvalue()), pre_buffer=True).read_row_group(0)
    source, columns = make_source(share["source"]), share["columns"]

    def run(tally: Tally) -> None:
        for path, groups in share["items"]:
            start = time.perf_counter()
            with pq.ParquetFile(source.seekable(path), pre_buffer=True) as file:
                for group in groups:
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    now = time.perf_counter()
                    tally.add(_stored_bytes(file, group, columns), table.num_rows, now - start)
                    start = now

    source.prepare()
    return run


def _stored_bytes(file: Any, group: int, columns: Sequence[str]) -> int:
    described = file.metadata.row_group(group)
    chunks = (described.column(number) for number in range(described.num_columns))
    return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def digests(share: dict[str, Any]) -> Run:
    """SHA-256 of every file."""
    source, paths = make_source(share["source"]), share["items"]

    def run(tally: Tally) -> None:
        for path in paths:
            start, digest = time.perf_counter(), hashlib.sha256()
            size_bytes = source.read_whole(path, digest.update)
            tally.digests[path] = digest.hexdigest()
            tally.add(size_bytes, 1, time.perf_counter() - start)

    source.prepare()
    return run


def shuffled_shares(items: Sequence[Any], readers: int, seed: int, epoch: int) -> list[list[Any]]:
    """The items of an epoch in an order of its own, dealt out to the readers. No share is empty: fewer items than
    readers give fewer shares."""
    order = list(items)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[reader::readers] for reader in range(min(readers, len(order)))]
