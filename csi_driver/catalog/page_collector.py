"""Collects the pages of a listing as Arrow columns: no Python object outlives its batch of pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from csi_driver.catalog.etags import encode_etags
from csi_driver.catalog.key_names import PATH_LIMIT_BYTES, Reason, all_plain, shown_path
from csi_driver.catalog.key_report import LeftOutKeys
from csi_driver.catalog.selection import Selection
from csi_driver.model.errors import StoreProtocolError
from csi_driver.model.snapshot import ObjectPage

BATCH_OBJECTS = 65_536
"""Objects that become Arrow columns together. About 20 MB of Python objects at most."""

NATURAL = -1
"""In the column ``renamed``: the path is the key. Otherwise the row of the object in the table of renamed keys."""

ROWS = pa.schema(
    [
        ("directory", pa.dictionary(pa.int32(), pa.large_binary())),
        ("name", pa.large_binary()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("etag", pa.large_binary()),
        ("renamed", pa.int32()),
    ]
)

RENAMED = pa.schema([("key", pa.large_binary()), ("reason", pa.large_binary())])


class PageCollector:
    """Used by one thread at a time."""

    def __init__(self, prefix: str, selection: Selection) -> None:
        self._prefix = prefix
        self._selection = selection
        self._batches: list[pa.RecordBatch] = []
        self._renamed_batches: list[pa.RecordBatch] = []
        self._renamed_total = 0
        self._markers: set[bytes] = set()
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

    def add(self, page: ObjectPage) -> None:
        """Raises StoreProtocolError for a key that does not begin with the requested prefix."""
        self.counts["objects_listed"] += len(page)
        keys = self._below_prefix(page.keys)
        sizes_bytes, mtimes_ns, etags = page.sizes_bytes, page.mtimes_ns, page.etags
        if not self._selection.selects_all:
            chosen = self._selection.chosen(keys)
            if len(chosen) < len(keys):
                self.counts["not_selected"] += len(keys) - len(chosen)
                keys, sizes_bytes = [keys[i] for i in chosen], [sizes_bytes[i] for i in chosen]
                mtimes_ns, etags = [mtimes_ns[i] for i in chosen], [etags[i] for i in chosen]
        if not keys:
            return
        raw = _encoded(keys)
        if all_plain(raw):
            self._take(raw, sizes_bytes, mtimes_ns, encode_etags(etags), [NATURAL] * len(raw))
        else:
            self._take_one_by_one(raw, sizes_bytes, mtimes_ns, encode_etags(etags))
        if len(self._paths) >= BATCH_OBJECTS:
            self._end_batch()

    def _below_prefix(self, keys: Sequence[str]) -> list[str]:
        prefix = self._prefix
        if not prefix:
            return list(keys)
        if not all(key.startswith(prefix) for key in keys):
            stray = next(key for key in keys if not key.startswith(prefix))
            raise StoreProtocolError(f"requested keys below {prefix!r}, but the store listed {stray!r}")
        start = len(prefix)
        return [key[start:] for key in keys]

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
            if key.endswith(b"/") or not key:
                self._take_marker(key, sizes_bytes[position])
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

    def _take_marker(self, key: bytes, size_bytes: int) -> None:
        self.counts["directory_markers"] += 1
        if size_bytes:
            self.left_out.add(key, Reason.MARKER_WITH_BYTES)
        if not key:
            return
        path = shown_path(key[:-1]).path
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

    def tables(self) -> tuple[Any, Any, list[bytes]]:
        """Rows, renamed keys, and the directories of markers. Empties the collector."""
        if self._paths:
            self._end_batch()
        rows = pa.Table.from_batches(self._batches, schema=ROWS)
        renamed = pa.Table.from_batches(self._renamed_batches, schema=RENAMED)
        markers = sorted(self._markers)
        self._batches, self._renamed_batches, self._markers = [], [], set()
        return rows, renamed, markers


def _encoded(keys: list[str]) -> list[bytes]:
    """In UTF-8, surrogate escapes as the original bytes. One conversion for all keys, unless one has a NUL byte."""
    try:
        raw = "\0".join(keys).encode("utf-8", "surrogateescape").split(b"\0")
        if len(raw) == len(keys):
            return raw
        return [key.encode("utf-8", "surrogateescape") for key in keys]
    except UnicodeEncodeError as error:
        raise StoreProtocolError(f"the store listed a key that is not valid text: {error.object!r:.200}") from None
