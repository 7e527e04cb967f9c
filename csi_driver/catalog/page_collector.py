"""Collects the pages of a listing as Arrow columns: no Python object outlives its batch of pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog.etags import encode_etags
from csi_driver.catalog.key_names import (
    FOLDER_SUFFIX,
    PATH_LIMIT_BYTES,
    Reason,
    all_plain,
    is_text,
    marked_directory,
    shown_path,
)
from csi_driver.catalog.key_report import LeftOutKeys
from csi_driver.catalog.plain_batches import (
    MOST_BYTES,
    MOST_OBJECT_BYTES,
    NATURAL,
    ROWS,
    ColumnPage,
    columns_of,
    plain_batch,
)
from csi_driver.catalog.selection import Selection
from csi_driver.catalog.spilled_rows import SpilledRows
from csi_driver.model.snapshot import MOST_TIME_NS, ObjectPage, representable_ns

BATCH_OBJECTS = 65_536
"""Objects that become Arrow columns together. About 20 MB of Python objects at most."""

RENAMED = pa.schema([("key", pa.large_binary()), ("reason", pa.large_binary())])


SPILL_BATCHES = 8
"""So many batches are kept in memory: half a million objects, about 50 MB. More go to the disk."""


class PageCollector:
    """Used by one thread at a time."""

    def __init__(self, prefix: str, selection: Selection, spilled: SpilledRows | None = None) -> None:
        """``spilled`` takes what is too much for the memory; None: everything stays there."""
        self._spilled = spilled
        self._prefix, self._raw_prefix = prefix, prefix.encode("utf-8", "surrogateescape")
        self._selection = selection
        self._batches: list[pa.RecordBatch] = []
        self._renamed_batches: list[pa.RecordBatch] = []
        self._renamed_total = 0
        self._total_bytes = 0
        self._markers: set[bytes] = set()
        self._waiting: list[ObjectPage] = []
        self._waiting_objects = 0
        self._begin_batch()
        self.left_out = LeftOutKeys()
        self.counts: Counter[str] = Counter()

    def _begin_batch(self) -> None:
        self._paths: list[bytes] = []
        self._sizes_bytes: list[int] = []
        self._mtimes_ns: list[int] = []
        self._etags: list[bytes] = []
        self._renamed: list[int] = []
        self._renamed_keys: list[bytes] = []
        self._renamed_reasons: list[bytes] = []

    def add(self, page: ObjectPage | ColumnPage) -> None:
        """Whatever is in an entry, the others are collected: one that cannot be shown is left out. What is known of the
        objects is complete after ``tables`` or ``spill_rest``. Raises OSError, BudgetExceeded."""
        self.counts["objects_listed"] += len(page)
        if isinstance(page, ColumnPage):
            self._add_columns(page)
        else:
            for key in page.unreadable:
                self.left_out.add(key.removeprefix(self._prefix).encode("utf-8", "surrogateescape"), Reason.UNREADABLE)
            if len(page):
                self._waiting.append(page)
                self._waiting_objects += len(page)
            if self._waiting_objects >= BATCH_OBJECTS:
                self._add_waiting()
        if self._spilled is not None and len(self._batches) >= SPILL_BATCHES:
            self._spill(self._spilled)

    def _add_columns(self, page: ColumnPage) -> None:
        batch = plain_batch(page, self._raw_prefix, MOST_BYTES - self._total_bytes)
        if batch is None:
            self._add_one_by_one([page.as_objects()])
        else:
            self._take_batch(batch, () if self._selection.selects_all else page.as_objects().keys, frozenset())

    def _add_waiting(self) -> None:
        """Makes columns of the pages that were collected."""
        pages, self._waiting, self._waiting_objects = self._waiting, [], 0
        columns = columns_of(pages)
        batch = None
        if columns is not None:
            batch = plain_batch(columns, self._raw_prefix, MOST_BYTES - self._total_bytes)
        if batch is None:
            self._add_one_by_one(pages)
            return
        keys = () if self._selection.selects_all else [key for page in pages for key in page.keys]
        self._take_batch(batch, keys, _archived_rows(pages))

    def _take_batch(self, batch: Any, keys: Sequence[str], archived_rows: Set[int]) -> None:
        """``keys`` of the rows: needed if not all are selected."""
        self._total_bytes += pc.sum(batch.column("size_bytes")).as_py()
        if self._selection.selects_all:
            self.counts["archived"] += len(archived_rows)
        else:
            chosen = self._selection.chosen([key[len(self._prefix) :] for key in keys])
            self.counts["not_selected"] += len(keys) - len(chosen)
            self.counts["archived"] += sum(row in archived_rows for row in chosen)
            batch = batch.take(pa.array(chosen, pa.int64()))
        if batch.num_rows:
            self._batches.append(batch)

    def _add_one_by_one(self, pages: Sequence[ObjectPage]) -> None:
        for page in pages:
            self._add_page(page)
        if self._paths:
            self._end_batch()

    def _add_page(self, page: ObjectPage) -> None:
        page = self._sound(page)
        keys = [key[len(self._prefix) :] for key in page.keys] if self._prefix else list(page.keys)
        sizes_bytes, mtimes_ns, etags = page.sizes_bytes, page.mtimes_ns, page.etags
        if not self._selection.selects_all:
            chosen = self._selection.chosen(keys)
            if len(chosen) < len(keys):
                self.counts["not_selected"] += len(keys) - len(chosen)
                keys, sizes_bytes = [keys[i] for i in chosen], [sizes_bytes[i] for i in chosen]
                mtimes_ns, etags = [mtimes_ns[i] for i in chosen], [etags[i] for i in chosen]
        if not keys:
            return
        if page.archived:
            archived = set(page.archived)
            self.counts["archived"] += sum(self._prefix + key in archived for key in keys)
        raw = _encoded(keys)
        if all_plain(raw) and not any(key.endswith(FOLDER_SUFFIX) for key in raw):
            self._take(raw, sizes_bytes, mtimes_ns, encode_etags(etags), [NATURAL] * len(raw))
        else:
            self._take_one_by_one(raw, sizes_bytes, mtimes_ns, encode_etags(etags))

    def _sound(self, page: ObjectPage) -> ObjectPage:
        """The entries that can be shown, with times that can be represented; mostly the page itself."""
        if not len(page):
            return page
        prefix, total_bytes = self._prefix, self._total_bytes + sum(page.sizes_bytes)
        regular = (
            min(page.sizes_bytes) >= 0
            and max(page.sizes_bytes) <= MOST_OBJECT_BYTES
            and total_bytes <= MOST_BYTES
            and min(page.mtimes_ns) >= -MOST_TIME_NS
            and max(page.mtimes_ns) <= MOST_TIME_NS
            and all(key.startswith(prefix) for key in page.keys)
            and is_text("".join(page.keys))
        )
        if regular:
            self._total_bytes = total_bytes
            return page
        kept = [row for row in range(len(page)) if self._takes(page.keys[row], page.sizes_bytes[row])]
        return ObjectPage(
            [page.keys[row] for row in kept],
            [page.sizes_bytes[row] for row in kept],
            [page.etags[row] for row in kept],
            [representable_ns(page.mtimes_ns[row]) for row in kept],
            archived=page.archived,
        )

    def _takes(self, key: str, size_bytes: int) -> bool:
        """False, and it is counted and reported, for an entry that cannot be shown."""
        reason = None
        if not key.startswith(self._prefix):
            reason = Reason.OUTSIDE_PREFIX
        elif not is_text(key):
            reason = Reason.NO_TEXT
        elif not 0 <= size_bytes <= MOST_OBJECT_BYTES or self._total_bytes + size_bytes > MOST_BYTES:
            reason = Reason.NO_SIZE
        if reason is None:
            self._total_bytes += size_bytes
            return True
        below = key.removeprefix(self._prefix)
        raw = below.encode("utf-8", "surrogateescape" if is_text(below) else "surrogatepass")
        self.left_out.add(raw[:PATH_LIMIT_BYTES], reason)
        return False

    def _take(
        self,
        paths: Sequence[bytes],
        sizes_bytes: Sequence[int],
        mtimes_ns: Sequence[int],
        etags: Sequence[bytes],
        renamed: Sequence[int],
    ) -> None:
        self._paths.extend(paths)
        self._sizes_bytes.extend(sizes_bytes)
        self._mtimes_ns.extend(mtimes_ns)
        self._etags.extend(etags)
        self._renamed.extend(renamed)

    def _take_one_by_one(
        self, keys: list[bytes], sizes_bytes: Sequence[int], mtimes_ns: Sequence[int], etags: list[bytes]
    ) -> None:
        kept, paths, renamed = [], [], []
        for position, key in enumerate(keys):
            directory = marked_directory(key, sizes_bytes[position])
            if directory is not None:
                self._take_marker(key, directory, sizes_bytes[position])
                continue
            shown = shown_path(key)
            if len(shown.path) > PATH_LIMIT_BYTES:
                self.left_out.add(key, Reason.LONG_PATH)
                continue
            kept.append(position)
            paths.append(shown.path)
            renamed.append(NATURAL if shown.reason is None else self._note_renamed(key, shown.reason))
        self._take(
            paths, [sizes_bytes[i] for i in kept], [mtimes_ns[i] for i in kept], [etags[i] for i in kept], renamed
        )

    def _take_marker(self, key: bytes, directory: bytes, size_bytes: int) -> None:
        self.counts["directory_markers"] += 1
        if size_bytes:
            self.left_out.add(key, Reason.MARKER_WITH_BYTES)
        if key in (b"", FOLDER_SUFFIX):
            return  # the root
        path = shown_path(directory).path
        if len(path) <= PATH_LIMIT_BYTES:
            self._markers.add(path)

    def _note_renamed(self, key: bytes, reason: Reason) -> int:
        self._renamed_keys.append(key)
        self._renamed_reasons.append(reason.encode())
        self._renamed_total += 1
        return self._renamed_total - 1

    def _end_batch(self) -> None:
        split = [path.rpartition(b"/") for path in self._paths]
        columns = [
            pa.array([part[0] for part in split], pa.large_binary()).dictionary_encode(),
            pa.array([part[2] for part in split], pa.large_binary()),
            pa.array(self._sizes_bytes, pa.int64()),
            pa.array(self._mtimes_ns, pa.int64()),
            pa.array(self._etags, pa.large_binary()),
            pa.array(self._renamed, pa.int32()),
        ]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=ROWS))
        if self._renamed_keys:
            renamed = [pa.array(values, pa.large_binary()) for values in (self._renamed_keys, self._renamed_reasons)]
            self._renamed_batches.append(pa.RecordBatch.from_arrays(renamed, schema=RENAMED))
        self._begin_batch()

    def _spill(self, spilled: SpilledRows) -> None:
        spilled.add(self._batches)
        self._batches = []

    @property
    def spilled(self) -> SpilledRows | None:
        """The objects that are on the disk; None: all are in memory."""
        return self._spilled if self._spilled is not None and self._spilled.row_count else None

    def spill_rest(self, spilled: SpilledRows) -> tuple[Any, list[bytes]]:
        """Has all objects on the disk; renamed keys, and the directories of markers. Empties the collector."""
        self._add_waiting()
        self._spill(spilled)
        _, renamed, markers = self.tables()
        return renamed, markers

    def tables(self) -> tuple[Any, Any, list[bytes]]:
        """Rows, renamed keys, and the directories of markers. Empties the collector."""
        self._add_waiting()
        rows = pa.Table.from_batches(self._batches, schema=ROWS)
        renamed = pa.Table.from_batches(self._renamed_batches, schema=RENAMED)
        markers = sorted(self._markers)
        self._batches, self._renamed_batches, self._markers = [], [], set()
        return rows, renamed, markers


def _archived_rows(pages: Sequence[ObjectPage]) -> frozenset[int]:
    """Of the objects of all pages."""
    found: list[int] = []
    first = 0
    for page in pages:
        if page.archived:
            known = set(page.archived)
            found += [row for row, key in enumerate(page.keys, first) if key in known]
        first += len(page)
    return frozenset(found)


def _encoded(keys: list[str]) -> list[bytes]:
    """In UTF-8, surrogate escapes as the original bytes. One conversion for all keys, unless one has a NUL byte."""
    raw = "\0".join(keys).encode("utf-8", "surrogateescape").split(b"\0")
    if len(raw) == len(keys):
        return raw
    return [key.encode("utf-8", "surrogateescape") for key in keys]
