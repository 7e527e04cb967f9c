"""The file of a manifest: one Arrow IPC file, uncompressed, so that readers can map it and use it in place.

It has one row. Its columns ``files``, ``directories``, ``renamed`` and ``left_out`` are lists of structs: four tables
in one file that any Arrow reader opens. The description of the manifest is JSON in the schema's metadata. So is a
CRC32C of all other bytes of the file (twice, since Arrow writes the schema at both ends). It is verified before Arrow
reads the file, so that Arrow never parses a damaged one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import crc32c
import pyarrow as pa
import pyarrow.compute as pc

from csi_driver.catalog.etags import WEAK_ETAG
from csi_driver.catalog.path_assignment import Arranged
from csi_driver.model.errors import ManifestInvalid

FORMAT_VERSION = 1
PINNED_FORMAT_VERSION = 2
"""Of a manifest with the column ``versions``: the store's id of the version of each file, empty where it has none. Only
snapshots are written so. A version of Hayloft without snapshots refuses them: it would read other versions."""

DESCRIPTION_KEY = b"hayloft"
CHECKSUM_KEY = b"hayloft-checksum"
_CHECKSUM_MARK = b"\x01crc32c\x01"
"""JSON never holds the byte 0x01, so the mark does not occur in the description."""
_CHECKSUM_PLACE = _CHECKSUM_MARK + b"00000000"
_SEARCH_BYTES = 4 << 20
"""How far from either end of the file the schema is searched."""
_PIECE_BYTES = 1 << 20
_WRITE_BYTES = 32 << 20
_PIECE_ROWS = 500_000

COLUMNS: Mapping[str, Any] = {
    "files": pa.struct(
        [
            ("name", pa.large_binary()),
            ("directory", pa.int32()),
            ("size_bytes", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("etag", pa.large_binary()),
        ]
    ),
    "directories": pa.struct(
        [
            ("name", pa.large_binary()),
            ("parent", pa.int32()),
            ("first_file", pa.int64()),
            ("stop_file", pa.int64()),
            ("first_child", pa.int64()),
            ("stop_child", pa.int64()),
        ]
    ),
    "renamed": pa.struct([("row", pa.int64()), ("key", pa.large_binary()), ("reason", pa.large_binary())]),
    "left_out": pa.struct([("key", pa.large_binary()), ("reason", pa.large_binary())]),
}

PINNED_COLUMNS: Mapping[str, Any] = {**COLUMNS, "versions": pa.struct([("id", pa.large_binary())])}
COLUMNS_OF_FORMAT: Mapping[int, Mapping[str, Any]] = {FORMAT_VERSION: COLUMNS, PINNED_FORMAT_VERSION: PINNED_COLUMNS}


def schema_of(columns: Mapping[str, Any]) -> Any:
    """Of a manifest with these columns."""
    return pa.schema([(name, pa.large_list(kind)) for name, kind in columns.items()])


Release = Callable[[], None]
"""Takes pages of mapped columns that were read out of this process's memory (``MappedColumns.release``)."""


def in_memory() -> None:
    """The ``Release`` of columns that are in memory."""


def snapshot_id(arranged: Arranged, release: Release = in_memory) -> str:
    """32 hexadecimal digits over path, key, size and ETag of every file (mtime where there is no strong ETag) and the
    directories. The same content gives the same id, in whatever order it was listed."""
    digest = hashlib.blake2b(digest_size=16)
    files = arranged.files
    for table, names in (
        (files, ("name", "directory", "size_bytes", "etag")),
        (arranged.directories, ("name", "parent")),
        (arranged.renamed, ("row", "key")),
    ):
        digest.update(table.num_rows.to_bytes(8, "little"))
        for name in names:
            _hash_column(digest, table.column(name), release)
    for piece in _pieces_of(files):
        dated = pc.if_else(has_strong_etag(piece), 0, piece.column("mtime_ns"))
        _hash_column(digest, dated, release)
    return digest.hexdigest()


def strong_etag_count(files: Any, release: Release = in_memory) -> int:
    """Of how many files the listing names the version."""
    count = 0
    for piece in _pieces_of(files):
        count += pc.sum(has_strong_etag(piece)).as_py() or 0
        release()
    return count


def pinned_snapshot_id(snapshot_id: str, versions: Any, notes: Mapping[str, Any]) -> str:
    """The id of a snapshot with these versions of its files (a struct array; None: none is known)."""
    digest = hashlib.blake2b(f"{snapshot_id}\n{json.dumps(notes, sort_keys=True)}\n".encode(), digest_size=16)
    if versions is not None:
        _hash_column(digest, pa.chunked_array([versions.field("id")]))
    return digest.hexdigest()


def noted_snapshot_id(snapshot_id: str, notes: Mapping[str, Any]) -> str:
    """The id of a snapshot with the same files, whose manifest says more of them."""
    text = f"{snapshot_id}\n{json.dumps(notes, sort_keys=True)}\n"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def has_strong_etag(files: Any) -> Any:
    """For each row, whether the listing names its version."""
    etags = files.column("etag")
    return pc.and_(pc.greater(pc.binary_length(etags), 0), pc.invert(pc.starts_with(etags, WEAK_ETAG)))


def _pieces_of(rows: Any) -> Iterator[Any]:
    """Of a table, a column or an array."""
    for start in range(0, len(rows), _PIECE_ROWS):
        yield rows.slice(start, _PIECE_ROWS)


def _hash_column(digest: Any, column: Any, release: Release = in_memory) -> None:
    """Values and, for binary columns, lengths; independent of how the column is cut into chunks."""
    pieces = [piece for chunk in column.chunks for piece in _pieces_of(chunk)]
    for chunk in pieces:
        if pa.types.is_large_binary(chunk.type):
            lengths = pc.binary_length(chunk)
            digest.update(_values_buffer(lengths))
            release()
    for chunk in pieces:
        if pa.types.is_large_binary(chunk.type):
            if len(chunk):
                first, stop = pa.array(_offsets(chunk)).take(pa.array([0, len(chunk)])).to_pylist()
                digest.update(chunk.buffers()[2].slice(first, stop - first) if stop > first else b"")
        else:
            digest.update(_values_buffer(chunk))
        release()


def _offsets(chunk: Any) -> Any:
    return pa.Array.from_buffers(pa.int64(), len(chunk) + 1, [None, chunk.buffers()[1]], offset=chunk.offset)


def _values_buffer(chunk: Any) -> Any:
    width = chunk.type.bit_width // 8
    if not len(chunk):
        return b""
    return chunk.buffers()[1].slice(chunk.offset * width, len(chunk) * width)


def write_manifest(
    arranged: Arranged, left_out: Any, description: Mapping[str, Any], target: Path, release: Release = in_memory
) -> None:
    """Makes the file durable under a temporary name, then renames it. Blocks on the disk; raises OSError."""
    tables = (arranged.files, arranged.directories, arranged.renamed, left_out)
    arrays = {name: _as_struct(table, kind) for table, (name, kind) in zip(tables, COLUMNS.items(), strict=True)}
    write_arrays(arrays, FORMAT_VERSION, description, target, release)


def write_arrays(
    arrays: Mapping[str, Any],
    version: int,
    description: Mapping[str, Any],
    target: Path,
    release: Release = in_memory,
) -> None:
    """As ``write_manifest``, from the columns of a format version, each as one struct array."""
    text = json.dumps({**description, "format": version}, separators=(",", ":"))
    kinds = PINNED_COLUMNS if version == PINNED_FORMAT_VERSION else COLUMNS
    schema = schema_of(kinds).with_metadata({DESCRIPTION_KEY: text.encode("ascii"), CHECKSUM_KEY: _CHECKSUM_PLACE})
    lists = [
        pa.LargeListArray.from_arrays(pa.array([0, len(arrays[name])], pa.int64()), arrays[name]) for name in kinds
    ]
    with _replacing(target) as file:
        with pa.ipc.new_file(pa.PythonFile(_InPieces(file, release), "w"), schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(lists, schema=schema))
        file.flush()
        places = _checksum_places(file)
        checksum = b"%08x" % _checksum(file, places)
        for place in places:
            file.seek(place)
            file.write(checksum)


class _InPieces(io.RawIOBase):
    """A file to which a column of any size is written without being in memory as a whole."""

    def __init__(self, file: BinaryIO, release: Release) -> None:
        self._file, self._release = file, release

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        whole = memoryview(data)
        for start in range(0, len(whole), _WRITE_BYTES):
            self._file.write(whole[start : start + _WRITE_BYTES])
            self._release()
        return len(whole)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_struct(table: Any, kind: Any) -> Any:
    """The complete table as one array."""
    columns = []
    for position in range(kind.num_fields):
        column = table.column(kind.field(position).name)
        chunks = column.chunks
        columns.append(chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], column.type)]))
    return pa.StructArray.from_arrays(columns, fields=list(kind))


def verify_checksum(path: Path, file: BinaryIO) -> None:
    """Reads the file once, piece by piece. Raises ManifestInvalid and OSError."""
    places = _checksum_places(file)
    if len(places) != 2:
        raise ManifestInvalid(f"{path}: is no manifest of Hayloft, or incomplete; delete it and it is built again")
    written = []
    for place in places:
        file.seek(place)
        written.append(file.read(8))
    expected = b"%08x" % _checksum(file, places)
    if written != [expected, expected]:
        raise ManifestInvalid(f"{path}: is damaged (checksum); delete it and it is built again")


def _checksum_places(file: BinaryIO) -> list[int]:
    """Positions of the eight digits: after the first mark and after the last."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    first = file.read(_SEARCH_BYTES).find(_CHECKSUM_MARK)
    tail = max(0, size - _SEARCH_BYTES)
    file.seek(tail)
    last = file.read(_SEARCH_BYTES).rfind(_CHECKSUM_MARK)
    if first < 0 or last < 0 or tail + last <= first or tail + last + len(_CHECKSUM_PLACE) > size:
        return []
    return [first + len(_CHECKSUM_MARK), tail + last + len(_CHECKSUM_MARK)]


def _checksum(file: BinaryIO, places: list[int]) -> int:
    """CRC32C of all bytes except the digits of the checksum itself."""
    size = file.seek(0, os.SEEK_END)
    value = 0
    start = 0
    for stop, following in ((places[0], places[0] + 8), (places[1], places[1] + 8), (size, size)):
        file.seek(start)
        left = stop - start
        while left > 0:
            piece = file.read(min(left, _PIECE_BYTES))
            if not piece:
                break
            value = crc32c.crc32c(piece, value)
            left -= len(piece)
        start = following
    return value
