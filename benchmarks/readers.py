"""The readers of the comparison. Cheap on purpose: what is measured is the mount, not the reader.

They run in the reader processes of ``csi_driver.demo``: fresh processes that fork, start at one moment and answer with
bytes and latencies. Like those of the demonstration, each is given the share of one process and returns what is run
when the clock starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from csi_driver.demo.workloads import Run, Tally

BUFFER_BYTES = 1 << 20
"""What common readers use, and the largest request that the kernel sends to a FUSE server."""


def files(share: dict[str, Any]) -> Run:
    """Whole files, one after the other: open, read by 1 MiB into one buffer, close."""
    root, paths = share["root"], share["items"]

    def run(tally: Tally) -> None:
        buffers = [bytearray(BUFFER_BYTES)]
        for path in paths:
            start, total = time.perf_counter(), 0
            descriptor = os.open(f"{root}/{path}", os.O_RDONLY)
            while count := os.readv(descriptor, buffers):
                total += count
            os.close(descriptor)
            tally.add(total, 1, time.perf_counter() - start)

    return run


def _store(share: dict[str, Any]) -> Any:
    from obstore.store import S3Store

    return S3Store(
        share["bucket"],
        prefix=share["prefix"].rstrip("/"),
        endpoint=share["endpoint"],
        access_key_id=share["access_key_id"],
        secret_access_key=share["secret_access_key"],
        region="us-east-1",
        client_options={"allow_http": True},
    )


def _in_threads(count: int, work: Callable[[Any], int], items: list[Any], tally: Tally) -> None:
    """Tallies in the calling thread; latencies are those of each piece of work."""

    def timed(item: Any) -> tuple[int, float]:
        start = time.perf_counter()
        return work(item), time.perf_counter() - start

    with ThreadPoolExecutor(count) as pool:
        for read_bytes, latency_s in pool.map(timed, items):
            tally.add(read_bytes, 1, latency_s)


def obstore_ranges(share: dict[str, Any]) -> Run:
    """Ranges of objects, streamed by ``threads`` threads into files of the same names below ``into``: what the data
    path would reach if it had nothing else to do. Items are (path, size in bytes)."""
    store, step = _store(share), share["range_bytes"]
    store.head(share["items"][0][0])

    def run(tally: Tally) -> None:
        descriptors, ranges = {}, []
        for path, size_bytes in share["items"]:
            where = os.path.join(share["into"], path)
            os.makedirs(os.path.dirname(where), exist_ok=True)
            descriptors[path] = os.open(where, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.ftruncate(descriptors[path], size_bytes)
            ranges += [(path, start, min(step, size_bytes - start)) for start in range(0, size_bytes, step)]

        def fetch(item: tuple[str, int, int]) -> int:
            path, offset, length = item
            body = store.get(path, options={"range": (offset, offset + length)})
            for piece in body.stream(min_chunk_size=BUFFER_BYTES):
                offset += os.pwrite(descriptors[path], piece, offset)
            return length

        _in_threads(share["threads"], fetch, ranges, tally)
        for descriptor in descriptors.values():
            os.close(descriptor)

    return run


def obstore_gets(share: dict[str, Any]) -> Run:
    """Whole objects into memory by ``threads`` threads."""
    store = _store(share)
    store.head(share["items"][0])

    def run(tally: Tally) -> None:
        _in_threads(share["threads"], lambda path: len(store.get(path).bytes()), share["items"], tally)

    return run
