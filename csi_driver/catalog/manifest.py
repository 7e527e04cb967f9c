"""A stored manifest, mapped into memory."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog import verified_files
from csi_driver.catalog.key_names import Reason
from csi_driver.catalog.key_report import EXAMPLES, KeyReport, LeftOutKey, RenamedKey
from csi_driver.catalog.manifest_format import (
    CHECKSUM_KEY,
    COLUMNS_OF_FORMAT,
    DESCRIPTION_KEY,
    schema_of,
    verify_checksum,
)
from csi_driver.catalog.tree import BinaryColumn, Tree, TreeColumns
from csi_driver.model.errors import ManifestInvalid
from csi_driver.model.tracebacks import summary

_UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError)
"""What reading a file raises whose bytes are as they were written, and are no manifest."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One snapshot. Immutable, so any number of threads may use it.

    The file stays mapped as long as the manifest or its tree is referenced, also after it was deleted or replaced under
    its name. It must never be changed or truncated in place.
    """

    path: Path
    url: str
    prefix: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    snapshot_id: str
    created_ns: int
    tree: Tree
    _description: Mapping[str, Any]
    _columns: Mapping[str, Any]

    @property
    def file_count(self) -> int:
        return self.tree.file_count

    @property
    def directory_count(self) -> int:
        return self.tree.directory_count

    @property
    def total_bytes(self) -> int:
        return self.tree.total_bytes

    @property
    def archived_count(self) -> int:
        """Files that the store has in an archive."""
        return int(self._description["counts"].get("archived", 0))  # absent in manifests of older versions

    @property
    def unversioned_count(self) -> int:
        """Files of which the listing has no strong ETag."""
        return int(self._description["counts"].get("unversioned", 0))

    @property
    def pinning(self) -> Mapping[str, Any] | None:
        """How the versions of a snapshot are pinned (``version_pinning.py``); None for any other manifest."""
        found: Mapping[str, Any] | None = self._description.get("pinning")
        return found

    @property
    def imported(self) -> Mapping[str, Any] | None:
        """The inventory that the list of objects is of (``inventory_import.py``); None: the store listed them."""
        found: Mapping[str, Any] | None = self._description.get("imported")
        return found

    @property
    def description(self) -> Mapping[str, Any]:
        """As it was written."""
        return self._description

    @property
    def columns(self) -> Mapping[str, Any]:
        """The tables, each as one struct array over the mapping."""
        return self._columns

    @classmethod
    def open(cls, path: Path, *, snapshot_id: str | None = None) -> Manifest:
        """Verifies the file against its checksum (about 0.1 s per GB in the page cache), unless it was verified before
        and is the same since (``verified_files.py``), and maps it.

        Raises ManifestInvalid for a file that is incomplete, foreign, damaged, of another format version or, if
        ``snapshot_id`` is given, of another snapshot; FileNotFoundError and other OSErrors of the disk unchanged.
        """
        with path.open("rb") as file:
            remembered = verified_files.is_remembered(file.fileno())
            if not remembered:
                verify_checksum(path, file)
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            try:
                columns, description = _read(path, mapped, all_rows=not remembered)
                manifest = cls._of(path, mapped, columns, description)
            except _UNREADABLE as error:
                # Arrow raises OSError for a column beyond the end of the file; an error of the disk would have come
                # earlier.
                reason = f"cannot be read ({summary(error)}); delete it and it is built again"
                raise ManifestInvalid(f"{path}: {reason}") from error
            if not remembered:
                verified_files.remember(file.fileno())
        if snapshot_id is not None and manifest.snapshot_id != snapshot_id:
            raise ManifestInvalid(f"{path}: is of snapshot {manifest.snapshot_id}, not {snapshot_id}")
        return manifest

    @classmethod
    def _of(cls, path: Path, mapped: mmap.mmap, columns: Mapping[str, Any], description: Mapping[str, Any]) -> Manifest:
        base = pa.py_buffer(mapped).address
        tree = Tree(
            TreeColumns(
                mapped=mapped,
                prefix=description["prefix"].encode("utf-8", "surrogateescape"),
                created_ns=description["created_ns"],
                total_bytes=description["total_bytes"],
                snapshot_id=description["snapshot_id"],
                file_names=_binary(mapped, base, columns["files"].field("name")),
                file_directories=_integers(mapped, base, columns["files"].field("directory")),
                sizes_bytes=_integers(mapped, base, columns["files"].field("size_bytes")),
                mtimes_ns=_integers(mapped, base, columns["files"].field("mtime_ns")),
                etags=_binary(mapped, base, columns["files"].field("etag")),
                directory_names=_binary(mapped, base, columns["directories"].field("name")),
                parents=_integers(mapped, base, columns["directories"].field("parent")),
                first_files=_integers(mapped, base, columns["directories"].field("first_file")),
                stop_files=_integers(mapped, base, columns["directories"].field("stop_file")),
                first_children=_integers(mapped, base, columns["directories"].field("first_child")),
                stop_children=_integers(mapped, base, columns["directories"].field("stop_child")),
                renamed_rows=_integers(mapped, base, columns["renamed"].field("row")),
                renamed_keys=_binary(mapped, base, columns["renamed"].field("key")),
                versions=_binary(mapped, base, columns["versions"].field("id")) if "versions" in columns else None,
            )
        )
        return cls(
            path=path,
            url=description["url"],
            prefix=description["prefix"],
            include=tuple(description["include"]),
            exclude=tuple(description["exclude"]),
            snapshot_id=description["snapshot_id"],
            created_ns=description["created_ns"],
            tree=tree,
            _description=description,
            _columns=columns,
        )

    def key_report(self) -> KeyReport:
        """Renamed and left out keys. Reads at most ``EXAMPLES`` keys of each reason into memory."""
        counts = self._description["counts"]
        renamed_counts = {Reason(name): count for name, count in counts["renamed"].items()}
        examples: list[RenamedKey] = []
        for reason in renamed_counts:
            examples += self._renamed_examples(reason)
        left_out = self._columns["left_out"].to_pylist()
        return KeyReport(
            objects_listed=counts["objects_listed"],
            not_selected=counts["not_selected"],
            directory_markers=counts["directory_markers"],
            duplicates=counts["duplicates"],
            renamed_counts=renamed_counts,
            left_out_counts={Reason(name): count for name, count in counts["left_out"].items()},
            renamed=tuple(examples),
            left_out=tuple(LeftOutKey(entry["key"], Reason(entry["reason"].decode())) for entry in left_out),
        )

    def _renamed_examples(self, reason: Reason) -> list[RenamedKey]:
        table = pa.Table.from_struct_array(self._columns["renamed"])
        mask = pc.equal(table.column("reason"), reason.encode())
        entries = table.filter(mask).slice(0, EXAMPLES).to_pylist()
        return [RenamedKey(entry["key"], self.tree.path(entry["row"] + 2), reason) for entry in entries]


def _read(path: Path, mapped: mmap.mmap, *, all_rows: bool) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The tables as struct arrays over the mapping, and the description. ``all_rows``: as of ``_check_positions``."""
    reader = pa.ipc.open_file(pa.py_buffer(mapped))
    metadata = reader.schema.metadata or {}
    if DESCRIPTION_KEY not in metadata or CHECKSUM_KEY not in metadata:
        raise ManifestInvalid(f"{path}: is no manifest of Hayloft")
    description = json.loads(metadata[DESCRIPTION_KEY])
    kinds = COLUMNS_OF_FORMAT.get(description["format"])
    if kinds is None:
        raise ManifestInvalid(
            f"{path}: has format version {description['format']}, this program reads "
            f"{' and '.join(map(str, COLUMNS_OF_FORMAT))}; delete it and it is built again, or use a newer Hayloft"
        )
    if reader.schema.remove_metadata() != schema_of(kinds) or reader.num_record_batches != 1:
        raise ManifestInvalid(f"{path}: has other columns than a manifest of its version")
    batch = reader.get_batch(0)
    batch.validate()
    columns = {name: batch.column(name).values for name in kinds}
    _check_positions(path, columns, all_rows=all_rows)
    return columns, description


def _check_positions(path: Path, columns: Mapping[str, Any], *, all_rows: bool) -> None:
    """The checksum proves that the file is as it was written; this check, that its tree can be walked. Offsets of the
    files' names are not checked: they are used to slice the mapping only, which never leaves the file. ``all_rows``
    False: but for what grows with the number of files."""
    for name in ("directories", "renamed", "left_out"):
        columns[name].validate(full=True)
    files, directories = columns["files"], columns["directories"]
    if len(columns.get("versions", files)) != len(files):
        raise ManifestInvalid(f"{path}: has versions of other files than its own")
    limits = [(files.field("directory"), len(directories))] if all_rows else []
    for kind, limit in (("file", len(files)), ("child", len(directories))):
        first, stop = directories.field(f"first_{kind}"), directories.field(f"stop_{kind}")
        limits += [(first, limit + 1), (stop, limit + 1), (pc.subtract(stop, first), limit + 1)]
    limits.append((columns["renamed"].field("row"), len(files)))
    sound = len(directories) > 0 and all(_within(values, limit) for values, limit in limits)
    # A parent comes before its children, so there is no cycle.
    rows = pa.arange(0, len(directories))  # not pa.array, which imports pandas where it is installed
    parents = directories.field("parent").cast(pa.int64())
    if not (
        sound and _within(parents, len(directories)) and pc.all(pc.less(parents[1:], rows[1:])).as_py() is not False
    ):
        raise ManifestInvalid(f"{path}: its directories are not a tree; delete it and it is built again")


def _within(values: Any, limit: int) -> bool:
    edges = pc.min_max(values).as_py()
    return not len(values) or (edges["min"] >= 0 and edges["max"] < limit)


def _integers(mapped: mmap.mmap, base: int, array: Any) -> memoryview:
    buffer = array.buffers()[1]
    view = _view(mapped, base, buffer, len(array) * (array.type.bit_width // 8))
    return view.cast("i") if array.type.bit_width == 32 else view.cast("q")


def _binary(mapped: mmap.mmap, base: int, array: Any) -> BinaryColumn:
    _, offsets, data = array.buffers()
    if not len(array):
        return BinaryColumn(0, memoryview(bytes(8)).cast("q"))
    start = data.address - base if data is not None and data.size else 0
    return BinaryColumn(start, _view(mapped, base, offsets, (len(array) + 1) * 8).cast("q"))


def _view(mapped: mmap.mmap, base: int, buffer: Any, length: int) -> memoryview:
    if not length:
        return memoryview(b"")
    start = buffer.address - base
    if start < 0 or start + length > len(mapped) or length > buffer.size:
        raise ValueError("a column lies outside the file")
    return memoryview(mapped)[start : start + length]
