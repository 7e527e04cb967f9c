"""Names and sizes and nothing else: walk, stat and list of a directory, or the list of a store.

In a directory one sample is one stat(2) of a file, and one batch one folder that was walked to or listed. From a
store one batch is one page of the list, and its latency is shared by its samples, the names on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import crc32c

from hayloft_bench.loaders.sources import make_source
from hayloft_bench.run.reader_pool import ReadCounts, Run


def summary(entries: Iterable[tuple[str, int]]) -> list[int]:
    """How many (path, size) there are, and the CRC32C over all of them in order: what the readers must find."""
    ordered = sorted(entries)
    lines = "".join(f"{path} {size_bytes}\n" for path, size_bytes in ordered)
    return [len(ordered), crc32c.crc32c(lines.encode())]


class Branches:
    """``items`` are branches of the tree, each with its summary."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._items: list[dict[str, Any]] = arguments["items"]
        access = arguments["access"]
        self._root: str | None = access["root"].rstrip("/") if access["kind"] == "directory" else None
        self._source = make_source(access)
        self._source.open()

    def read(self, tally: ReadCounts) -> None:
        """All of them."""
        for item in self._items:
            branch = item["branch"]
            found = self._listed(branch, tally) if self._root is None else self._walked(branch, tally)
            ok = summary(found) == item["summary"]
            tally.checked(ok, f"{branch}: {len(found)} files, and not the names and sizes that were made")

    def _walked(self, branch: str, tally: ReadCounts) -> list[tuple[str, int]]:
        found, begin = [], len(str(self._root)) + 1
        start = time.perf_counter()
        for folder, _, names in os.walk(f"{self._root}/{branch}"):
            tally.batch(time.perf_counter() - start)
            for name in names:
                path = f"{folder}/{name}"
                start = time.perf_counter()
                size_bytes = os.stat(path).st_size
                tally.sample(time.perf_counter() - start, 0)
                found.append((path[begin:], size_bytes))
            start = time.perf_counter()
            listed = os.listdir(folder)
            tally.batch(time.perf_counter() - start)
            if not set(names) <= set(listed):
                tally.checked(False, f"{folder[begin:]}: a list and a walk that differ")
            start = time.perf_counter()
        return found

    def _listed(self, branch: str, tally: ReadCounts) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        start = time.perf_counter()
        for page in self._source.pages(branch):
            latency_s = time.perf_counter() - start
            tally.batch(latency_s)
            tally.sample(latency_s, 0, len(page))
            found += page
            start = time.perf_counter()
        return found


def load(arguments: dict[str, Any]) -> Run:
    """The job."""
    return Branches(arguments).read
