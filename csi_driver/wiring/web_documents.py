"""What the web page asks for, as JSON: from the same calls and documents as the commands ``hayloft status``, ``ls`` and
``top`` (decision 39). Nothing is computed, and nothing kept up to date, while no page asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from csi_driver.model.errors import InvalidParameter
from csi_driver.model.read_counts import ReadNumbers
from csi_driver.model.visible_text import visible
from csi_driver.volumes.node_operations import FileRows, NodeOperations, NodeStatus
from csi_driver.volumes.status_documents import (
    Rates,
    all_conditions,
    condition_document,
    entry_document,
    status_document,
)
from csi_driver.wiring.reader_rates import Sample, top_document, use_between

LOOK_S = 0.9
"""However often pages ask, and however many are open, the node is looked at once in this time."""

READERS_SHARE = 0.02
"""Of one thread's time, what looking for readers in /proc may take: it costs more, the more processes a node has."""

FORGET_S = 10.0
"""A look that is older says nothing of what goes on now: the page was closed, or hidden."""

COUNT_S = 0.1
"""One step of counting. All pages share one thread, and the state of the node is asked for in between."""

COUNT_FILES = 512
"""Counted in one call: 8 ms of work, and pauses in between."""

MOST_CELLS = 4096
"""Of a map that one request may ask for. The page draws up to some 1,500."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The node at one moment."""

    time_s: float
    status: NodeStatus
    reads: ReadNumbers


class NodeView:
    """Answers pages. Used by one thread, that of the page's server."""

    def __init__(
        self,
        operations: NodeOperations,
        reads: Callable[[], ReadNumbers],
        clock: Callable[[], float] = time.monotonic,
        work_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """``work_clock`` measures what looking for readers costs."""
        self._operations = operations
        self._reads = reads
        self._clock = clock
        self._work_clock = work_clock
        self._look: _Look | None = None
        self._sample: Sample | None = None
        self._next_sample_s = 0.0
        self._readers: dict[str, Any] | None = None
        self._document: dict[str, Any] = {}
        self._number = 0

    def node(self, _: Mapping[str, str]) -> dict[str, Any]:
        """Status, rates since the look before, and readers."""
        if self._look is None or self._clock() - self._look.time_s >= LOOK_S:
            self._look_again()
        return self._document

    def _look_again(self) -> None:
        before, after = self._look, _Look(self._clock(), self._operations.status(), self._reads())
        if before is not None and not 0 < after.time_s - before.time_s <= FORGET_S:
            before = None
        self._look = after
        self._look_at_readers(after.time_s)
        rates = None if before is None else Rates.between(before.status, after.status, after.time_s - before.time_s)
        self._number += 1
        self._document = {
            "number": self._number,
            "status": status_document(after.status, rates),
            "all_conditions": [
                {"volume_id": volume_id, **condition_document(condition)}
                for volume_id, condition in all_conditions(after.status)
            ],
            "throughput": None if before is None or rates is None else _throughput(before, after, rates),
            "readers": self._readers,
        }

    def _look_at_readers(self, now_s: float) -> None:
        if now_s < self._next_sample_s:
            return
        began_s = self._work_clock()  # of this thread: a node that is short of processors makes a look no dearer
        sample = Sample.of(self._operations.activity())
        cost_s = self._work_clock() - began_s
        self._next_sample_s = now_s + max(LOOK_S, cost_s / READERS_SHARE)
        before, self._sample = self._sample, sample
        # An interval may be longer than FORGET_S on a node with many processes. Its rates are means over that time.
        fresh = before is not None and sample.time_s - before.time_s <= max(FORGET_S, 2 * cost_s / READERS_SHARE)
        self._readers = top_document(use_between(before, sample)) if before is not None and fresh else None

    def directory(self, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of a directory's names. Raises VolumeNotFound, InvalidParameter."""
        path = unquote_to_bytes(query.get("path", "")).strip(b"/")
        volume_id = query.get("volume", "")
        page = self._operations.list_directory(volume_id, path, _number(query, "cookie", 0))
        prefix = path + b"/" if path else b""
        return {
            "volume_id": volume_id,
            "snapshot_id": page.snapshot_id,
            "shown": visible(path),
            "is_directory": page.is_directory,
            "rows": [page.rows.start, page.rows.stop],
            "next_cookie": page.next_cookie,
            "entries": [
                {
                    **entry_document(entry, entry.cached_bytes),
                    # Names are bytes: a page shows one form of them, and sends back the other one.
                    "shown": visible(entry.name),
                    "path": quote(prefix + entry.name),
                    "rows": [entry.rows.start, entry.rows.stop],
                }
                for entry in page.entries
            ],
        }

    def count(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Counts some files: of ``start`` to ``stop``, in cells of ``cell`` files that begin at ``origin``. Each part
        is first file, last file + 1, bytes, cached bytes and complete files. Raises VolumeNotFound, VolumeConflict
        (another snapshot), InvalidParameter."""
        volume_id, snapshot_id = query.get("volume", ""), query.get("snapshot", "")
        start, stop = _number(query, "start"), _number(query, "stop")
        origin, cell = _number(query, "origin", start), _number(query, "cell", 1)
        if not cell or origin > start:
            raise InvalidParameter(
                "cell", cell, "a positive number of files, and an origin that is no later than start"
            )
        until_s = self._clock() + COUNT_S
        parts: list[list[int]] = []
        while start < stop and len(parts) < MOST_CELLS and (not parts or self._clock() < until_s):
            end = min(stop, origin + ((start - origin) // cell + 1) * cell, start + COUNT_FILES)
            counted = self._operations.count_cached(volume_id, snapshot_id, FileRows(start, end))
            parts.append([start, counted.next_row, counted.total_bytes, counted.cached_bytes, counted.complete_files])
            start = counted.next_row
        return {"parts": parts, "next_row": start}


def _throughput(before: _Look, after: _Look, rates: Rates) -> dict[str, float]:
    """Bytes a second. What the kernel reads by itself is not seen: its files count with their size when they are
    opened, as in the metrics."""
    return {
        "span_s": rates.span_s,
        "passed_through": max(0, after.reads.passthrough_bytes - before.reads.passthrough_bytes) / rates.span_s,
        "served": max(0, _served_bytes(after.reads) - _served_bytes(before.reads)) / rates.span_s,
        "fetched": rates.fetched_bytes,
        "requests": rates.requests,
    }


def _served_bytes(reads: ReadNumbers) -> int:
    return reads.memory_bytes + reads.disk_bytes + reads.store_bytes


def _number(query: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = query.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InvalidParameter(name, text[:40], "a number from 0 on")
    return int(text)
