"""Names and sizes alone: walk, stat and list of a directory, or the listing of a store.

In a directory, one sample is one stat(2) of a file, and one batch one folder that was walked or listed. From a store,
one batch is one page of the listing; its names are its samples and share its latency.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import crc32c

from hayloft_bench.loaders.data_sources import make_source
from hayloft_bench.run.reader_pool import ReadCounts, Run


def summary(entries: Iterable[tuple[str, int]]) -> list[int]:
    """The number of (path, size) entries and the CRC32C over all of them in order: what the readers must find."""
    ordered = sorted(entries)
    lines = "".join(f"{path} {size_bytes}\n" for path, size_bytes in ordered)
    return [len(ordered), crc32c.crc32c(lines.encode())]


class TreeReader:
    """``items`` are branches of the tree, each with its summary."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._items: list[dict[str, Any]] = arguments["items"]
        access = arguments["access"]
        self._root: str | None = access["root"].rstrip("/") if access["kind"] == "directory" else None
        self._source = make_source(access)
        self._source.open()

    def read(self, counts: ReadCounts) -> None:
        for item in self._items:
            branch = item["branch"]
            found = self._listed(branch, counts) if self._root is None else self._walked(branch, counts)
            ok = summary(found) == item["summary"]
            counts.checked(ok, f"{branch}: the names or sizes of {len(found)} files differ from the dataset's")

    def _walked(self, branch: str, counts: ReadCounts) -> list[tuple[str, int]]:
        found, begin = [], len(str(self._root)) + 1
        start = time.perf_counter()
        for folder, _, names in os.walk(f"{self._root}/{branch}"):
            counts.batch(time.perf_counter() - start)
            for name in names:
                path = f"{folder}/{name}"
                start = time.perf_counter()
                size_bytes = os.stat(path).st_size
                counts.sample(time.perf_counter() - start, 0)
                found.append((path[begin:], size_bytes))
            start = time.perf_counter()
            listed = os.listdir(folder)
            counts.batch(time.perf_counter() - start)
            if not set(names) <= set(listed):
                counts.checked(False, f"{folder[begin:]}: listing and walk differ")
            start = time.perf_counter()
        return found

    def _listed(self, branch: str, counts: ReadCounts) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        start = time.perf_counter()
        for page in self._source.pages(branch):
            latency_s = time.perf_counter() - start
            counts.batch(latency_s)
            counts.sample(latency_s, 0, len(page))
            found += page
            start = time.perf_counter()
        return found


def load(arguments: dict[str, Any]) -> Run:
    return TreeReader(arguments).read
